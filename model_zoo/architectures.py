"""timm's models by name, and the preprocessing that timm gives them."""

from typing import Any, cast

import timm
import torch
from timm.data import resolve_model_data_config

from ..cli.config import nearest
from ..cli.errors import UserError
from .preprocessing import Preprocessing


def create_model(architecture: str, **options: Any) -> torch.nn.Module:
    """Returns timm's model of that name.

    Raises:
        UserError: naming the nearest model when there is none of that name, or when timm refuses the options.
    """
    if not timm.is_model(architecture):
        raise UserError(f"model={architecture}: timm knows no such model{nearest(architecture, timm.list_models())}")
    try:
        return cast(torch.nn.Module, timm.create_model(architecture, **options))
    except (TypeError, AssertionError, ValueError) as error:
        raise UserError(f"model={architecture} with {options}: {error}") from None
    except RuntimeError as error:  # an unknown tag after the dot
        if options.get("pretrained"):
            raise
        raise UserError(f"model={architecture}: {error}") from None


def timm_preprocessing(module: torch.nn.Module, image_size: int | None = None) -> Preprocessing:
    """Returns the evaluation preprocessing that timm names for its model `module`."""
    wanted = resolve_model_data_config(module)
    return Preprocessing(
        image_size=image_size or wanted["input_size"][-1],
        mean=tuple(wanted["mean"]),
        std=tuple(wanted["std"]),
        interpolation=wanted["interpolation"] if wanted["interpolation"] in ("bilinear", "bicubic") else "bicubic",
        crop_fraction=wanted["crop_pct"],
    )
