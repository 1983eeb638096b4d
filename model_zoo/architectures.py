"""timm's models by name, and the preprocessing that timm gives them."""

from pathlib import Path
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


def timm_preprocessing(module: torch.nn.Module) -> Preprocessing:
    """Returns the evaluation preprocessing that timm names for its model `module`."""
    wanted = resolve_model_data_config(module)
    return Preprocessing(
        image_size=wanted["input_size"][-1],
        mean=tuple(wanted["mean"]),
        std=tuple(wanted["std"]),
        interpolation=wanted["interpolation"] if wanted["interpolation"] in ("bilinear", "bicubic") else "bicubic",
        crop_fraction=wanted["crop_pct"],
    )


def create_offline(architecture: str, **options: Any) -> torch.nn.Module:
    """Returns timm's model with its pretrained weights from the caches of this machine; the network is not used.

    Raises:
        UserError: when there is no such model, or its weights are not here.
    """
    from huggingface_hub import constants  # takes most of a second

    config = timm.get_pretrained_cfg(architecture) if timm.is_model(architecture) else None
    if config is not None and not config.hf_hub_id and config.url:
        held = Path(torch.hub.get_dir()) / "checkpoints" / config.url.rpartition("/")[2]
        if not held.is_file():
            raise UserError(f"model={architecture}: offline forbids the network, and its weights are not at {held}")
    was_offline = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True  # as the variable of that name does, which is read only once
    try:
        return create_model(architecture, pretrained=True, **options)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"model={architecture}: offline forbids the network, and its weights are not on this machine ({reason})") from None
    finally:
        constants.HF_HUB_OFFLINE = was_offline
