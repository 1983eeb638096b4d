"""A published checkpoint as a model: a file, and the recipe that says what it is a checkpoint of."""

import dataclasses
from pathlib import Path
from typing import Any, cast

import timm
import torch

from ..cli.config import nearest
from ..cli.errors import DataError, UserError
from .architectures import create_model, timm_preprocessing
from .preprocessing import Preprocessing
from .registry import Entry, find_entry, read_registry
from .sources import Access, fetch
from .weight_files import read_checkpoint
from .wrappings import Match, load_match, match_backbone


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What has to be known to build and feed a checkpoint's model."""

    name: str
    """For tables: the registry's id, or FILE@NAME without its folder."""
    architecture: str
    """timm's name of the model."""
    model_args: dict[str, Any]
    """Further arguments of `timm.create_model`."""
    preprocessing: Preprocessing | None
    """None: what timm says."""
    entry: Entry | None = None
    """The registry's."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Published:
    """A model with a checkpoint's weights."""

    recipe: Recipe
    module: torch.nn.Module
    """Without a classifier."""
    preprocessing: Preprocessing
    match: Match
    path: Path


def entry_recipe(entry: Entry) -> Recipe:
    """Returns the recipe of a registry entry."""
    wanted = entry.preprocessing
    mean, std = wanted.statistics
    preprocessing = Preprocessing(
        image_size=wanted.image_size, mean=mean, std=std, interpolation=wanted.interpolation, crop_fraction=wanted.crop_fraction
    )
    return Recipe(
        name=entry.id, architecture=entry.architecture, model_args=dict(entry.model_args), preprocessing=preprocessing, entry=entry
    )


def recipe_named(name: str, entries: dict[str, Entry]) -> Recipe:
    """Returns the recipe of a registry id or of a timm architecture.

    Raises:
        UserError: naming the nearest, when it is neither.
    """
    if name in entries:
        return entry_recipe(entries[name])
    if not timm.is_model(name):
        raise UserError(f"{name}: neither an id of the registry nor a model of timm{nearest(name, [*entries, *timm.list_models()])}")
    return Recipe(name=name, architecture=name, model_args={}, preprocessing=None)


def load_published(path: Path, recipe: Recipe, part: str = "") -> Published:
    """Returns the recipe's model with all of its tensors from the file.

    Args:
        part: see `match_backbone`.

    Raises:
        DataError: when the file cannot be read safely, any tensor does not match, or model or classifier are not of the size that the
            registry says.
        UserError: when there is no such model or part.
    """
    checkpoint = read_checkpoint(path)
    module = create_model(recipe.architecture, num_classes=0, **recipe.model_args)
    if recipe.entry is not None:
        _check_model(recipe.entry, module)
    match = match_backbone(checkpoint, module, path, part)
    if recipe.entry is not None:
        _check_head(recipe.entry, match, path)
    load_match(module, match)
    preprocessing = recipe.preprocessing or timm_preprocessing(module)
    if (side := input_side(module)) is not None and recipe.entry is None:
        preprocessing = dataclasses.replace(preprocessing, image_size=side)
    return Published(recipe=recipe, module=module, preprocessing=preprocessing, match=match, path=path)


def _check_model(entry: Entry, module: torch.nn.Module) -> None:
    num_params, width = sum(parameter.numel() for parameter in module.parameters()), int(cast(Any, module).num_features)
    if num_params != entry.num_params:
        raise DataError(f"zoo:{entry.id}: {entry.architecture} has {num_params:,} parameters, the registry says {entry.num_params:,}")
    if width != entry.num_features:
        raise DataError(f"zoo:{entry.id}: {entry.architecture} has features of width {width:,}, the registry says {entry.num_features:,}")


def _check_head(entry: Entry, match: Match, path: Path) -> None:
    """Refuses a classifier of another size than the registry says; that of an entry without one is not looked at."""
    outputs = {len(tensor) for tensor in match.head.values() if tensor.ndim > 1}
    if entry.num_classes and outputs - {entry.num_classes}:
        found = " and ".join(f"{count:,}" for count in sorted(outputs))
        raise DataError(
            f"{path}: its classifier has {found} outputs, the registry says {entry.num_classes:,} of {entry.id}; "
            f"a checkpoint of one's own is opened as FILE@{entry.architecture}"
        )


def open_published(checkpoint: str, access: Access, *, part: str = "", model_args: dict[str, Any] | None = None) -> Published:
    """Returns the model that `zoo:ID`, `FILE@NAME` or `FILE#PART@NAME` names; NAME is an id of the registry or a model of timm.

    Args:
        part: PART, where the name holds none.
        model_args: further arguments of `timm.create_model`, over the registry's.

    Raises:
        UserError: when there is no such id, file or model, or the file is not here and the network is forbidden.
        DataError: when no source gives the file, or it is not what it should be.
    """
    entries = read_registry(access.registry)
    if checkpoint.startswith("zoo:"):
        entry = find_entry(entries, checkpoint.removeprefix("zoo:"))
        path, recipe = fetch(entry, access).path, entry_recipe(entry)
    else:
        file, at, name = checkpoint.rpartition("@")
        if not Path(file).is_file() and "#" in file:
            file, _, part = file.rpartition("#")
        if not at or not Path(file).is_file():
            what = "a folder, and no checkpoint of ours (RUN/checkpoints/step-N)" if Path(checkpoint).is_dir() else "no such file"
            raise UserError(f"checkpoint={checkpoint}: {what}; the form is FILE@NAME, NAME an id of the registry or a model of timm")
        path, recipe = Path(file), recipe_named(name, entries)
        recipe = dataclasses.replace(recipe, name=f"{path.name}@{name}")
    recipe = dataclasses.replace(recipe, model_args={**recipe.model_args, **(model_args or {})})
    return load_published(path, recipe, part)


def input_side(module: torch.nn.Module) -> int | None:
    """Returns the side, in pixels, of the only images that a timm model takes; None: it takes any."""
    config = cast(Any, module).pretrained_cfg
    if not config.get("fixed_input_size"):
        return None
    embedding = getattr(module, "patch_embed", None)
    if not getattr(embedding, "strict_img_size", True):
        return None
    size = getattr(embedding, "img_size", None)
    return int(config["input_size"][-1] if size is None else size[-1])


def resize_input(module: torch.nn.Module, image_size: int, checkpoint: str) -> None:
    """Makes a model with a fixed input size take images of another; position embeddings are resampled. Others take any size.

    Raises:
        UserError: when the model refuses the size.
    """
    if not cast(Any, module).pretrained_cfg.get("fixed_input_size"):
        return
    resize = getattr(module, "set_input_size", None)
    if resize is None:
        raise UserError(f"image_size={image_size}: {checkpoint} takes images of one size only")
    try:
        resize(img_size=image_size)
    except (AssertionError, ValueError, RuntimeError) as error:
        raise UserError(f"image_size={image_size}: {checkpoint} refuses it: {error}") from None
