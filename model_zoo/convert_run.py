"""`bamboo zoo convert RUN/checkpoints/step-N OUT`: a checkpoint of our own run as the export that the run would have written there."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch

from ..cli.errors import EXIT_DONE, DataError, UserError
from .export import Card, card_from, write_export
from .run_checkpoints import STATE_NAME, RunCheckpoint, file_fault, read_state, stray_fault
from .zoo_cli import ConvertSettings

_PARTS = ("ema", "model")
_OF_OTHERS = ("head", "classes", "model_args", "image_size", "normalisation", "interpolation", "crop_fraction", "registry")


def is_run_checkpoint(checkpoint: str) -> bool:
    """Whether a name is that of a checkpoint folder."""
    return (Path(checkpoint) / STATE_NAME).is_file()


def run(config: ConvertSettings) -> int:
    """Converts, or with dry_run only checks, and returns the exit code.

    Raises:
        UserError: for a setting that says what the checkpoint says itself, or a part that it does not have.
        DataError: when the checkpoint is damaged, or of a version that does not hold a card.
    """
    given = [name for name in _OF_OTHERS if getattr(config, name) is not None]
    if given:
        raise UserError(f"{given[0]}: not for a checkpoint of one's own run, which is converted as it is; leave it out")
    path = Path(config.checkpoint)
    weights, card = read_run_weights(path, config.part)
    part = card.trained["weights"]
    if config.dry_run:
        sys.stdout.write(f"{path}: would write {len(weights)} tensors ({part}) to {config.out}\n")
        return EXIT_DONE
    written = write_export(config.out, weights, card)
    sys.stdout.write(f"{written}: {len(weights)} tensors ({part}) after step {card.trained['steps']:,}\n")
    return EXIT_DONE


def read_run_weights(path: Path, part: str = "") -> tuple[dict[str, torch.Tensor], Card]:
    """Returns the whole weights of a checkpoint and their card, once all its files are known to be as they were written.

    Args:
        part: "model" or "ema"; empty: as the run's export has it, the average where there is one.

    Raises:
        UserError: when it has no such part.
        DataError: when it is damaged, or of a version that does not hold a card.
    """
    state = read_state(path)
    if state["version"] == 1:
        raise DataError(f"{path}: format version 1 does not say what model it is of; convert {path}/model.safetensors@NAME")
    opened = RunCheckpoint(path, state)
    fault = stray_fault(path, state["files"]) or file_fault(path, state["files"], sorted(state["files"]))
    if fault:
        raise DataError(f"{path}: {fault}")
    parts = {name: tensors for name in _PARTS if (tensors := opened.tensors(name)) is not None}
    if part and part not in parts:
        raise UserError(f"part={part}: {path} has {' and '.join(parts)}")
    chosen = part or next(iter(parts))
    return {name: stored.whole() for name, stored in parts[chosen].items()}, _card(state, path, chosen)


def _card(state: dict[str, Any], path: Path, part: str) -> Card:
    if not isinstance(state.get("card"), dict):
        raise DataError(f"{path}: holds no card")
    card = card_from(state["card"], path / STATE_NAME)
    return dataclasses.replace(card, trained={**card.trained, "weights": part})
