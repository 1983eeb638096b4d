"""`bamboo zoo convert`: a checkpoint of others, or of a run of ours, as an export."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, cast

import timm
import torch

from ..cli.errors import EXIT_DONE, DataError, UserError
from ..datasets.atomic import sha256_file
from . import convert_run
from .architectures import create_model
from .convert_run import is_run_checkpoint
from .export import CARD_NAME, WEIGHTS_NAME, Card, State, contiguous, network_hash, write_export
from .preprocessing import Preprocessing
from .published import Published, input_side, open_published
from .registry import NORMALISATIONS
from .sources import access_from_environment
from .zoo_cli import ConvertSettings


def run(config: ConvertSettings) -> int:
    """Converts, or with dry_run only matches, and returns the exit code."""
    taken = [name for name in (WEIGHTS_NAME, CARD_NAME) if (config.out / name).exists()]
    if taken and not config.dry_run:
        raise UserError(f"out={config.out}: holds {' and '.join(taken)} already; give a folder without an export")
    if is_run_checkpoint(config.checkpoint):
        return convert_run.run(config)
    names = None if config.classes is None else read_class_names(config.classes)
    opened = open_published(
        config.checkpoint, access_from_environment(registry=config.registry), part=config.part, model_args=config.model_args
    )
    preprocessing = _preprocessing(opened, config)
    state, classes = converted_state(opened, names, keep_head=config.head == "keep")
    sys.stdout.write(f"{opened.path}: {opened.match.summary}\n")
    sys.stdout.write("".join(f"  left out: {name}\n" for name in opened.match.left_out[:10]))
    if config.dry_run:
        sys.stdout.write(f"would write {len(state)} tensors, head {config.head or 'drop'}, to {config.out / WEIGHTS_NAME}\n")
        return EXIT_DONE
    card = Card(
        architecture=opened.recipe.architecture,
        model_args=opened.recipe.model_args,
        classes=classes,
        preprocessing=preprocessing,
        trained=_origin(opened),
    )
    written = write_export(config.out, state, card)
    identity = network_hash(card.architecture, card.model_args, opened.module.state_dict())
    sys.stdout.write(f"{written}: {len(state)} tensors, weights {identity[:12]}\n")
    return EXIT_DONE


def converted_state(opened: Published, names: list[str] | None, *, keep_head: bool) -> tuple[State, tuple[str, ...]]:
    """Returns the tensors to export, and the names of the head's outputs (their numbers, where nobody names them).

    Raises:
        UserError: when a head is to be kept and the checkpoint has none, or `names` are not as many as its outputs.
        DataError: when the head is not the one linear layer of the architecture.
    """
    backbone = opened.module.state_dict()
    if not keep_head:
        return backbone, ()
    head = opened.match.head
    weights = [tensor for name, tensor in head.items() if name.endswith("weight")]
    if not weights:
        raise UserError(f"head=keep: {opened.path} holds no classifier; use head=drop")
    num_classes = len(weights[0])
    if names is not None and len(names) != num_classes:
        raise UserError(f"classes: {len(names):,} names for a head of {num_classes:,} outputs")
    with torch.device("meta"):
        wanted = create_model(opened.recipe.architecture, num_classes=num_classes, **opened.recipe.model_args).state_dict()
    state = {**backbone, **contiguous(head)}
    differing = [name for name in {**wanted, **state} if name not in wanted or name not in state or wanted[name].shape != state[name].shape]
    if differing:
        raise DataError(f"{opened.path}: its head is not {opened.recipe.architecture}'s: {', '.join(differing[:20])}; use head=drop")
    return state, tuple(names or map(str, range(num_classes)))


def read_class_names(path: Path) -> list[str]:
    """Returns the names of a head's outputs, in order: from a JSON list, a JSON map of index to name, or a text with one a line.

    Raises:
        UserError: when the file is missing or none of these, or the indices of a map are not 0 to K - 1.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".json":
            return text.splitlines()
        tree: Any = json.loads(text)
        if isinstance(tree, dict):
            tree = [tree[str(index)] for index in range(len(tree))]
    except KeyError as error:
        raise UserError(f"classes={path}: the indices of a map must be 0 to K - 1; {error} is missing") from None
    except (OSError, ValueError) as error:
        raise UserError(f"classes={path}: not readable: {error}") from None
    if not isinstance(tree, list) or not all(isinstance(name, str) for name in tree):
        raise UserError(f"classes={path}: must be a list of names, or a map of index to name")
    return cast(list[str], tree)


def _preprocessing(opened: Published, config: ConvertSettings) -> Preprocessing:
    side = input_side(opened.module)
    if side is not None and config.image_size not in (None, side):
        raise UserError(
            f"image_size={config.image_size}: {opened.recipe.name} takes images of {side} pixels only, and a conversion resamples nothing; "
            f"leave it out here and give it where the export is used"
        )
    changes: dict[str, Any] = {
        name: value for name in ("image_size", "interpolation", "crop_fraction") if (value := getattr(config, name)) is not None
    }
    if config.normalisation is not None:
        changes["mean"], changes["std"] = NORMALISATIONS[config.normalisation]
    return dataclasses.replace(opened.preprocessing, **changes)


def _origin(opened: Published) -> dict[str, Any]:
    entry, match = opened.recipe.entry, opened.match
    return {
        "converted_from": opened.path.name,
        "file_sha256": sha256_file(opened.path),
        "zoo": None if entry is None else entry.id,
        "licence": None if entry is None else entry.licence,
        "wrapping": match.wrapping,
        "prefix": match.prefix,
        "left_out": len(match.left_out),
        "weights": "published",
        "versions": {"torch": torch.__version__, "timm": timm.__version__},
    }
