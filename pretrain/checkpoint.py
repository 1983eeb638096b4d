"""Checkpoints: the whole state of a run after a step, in a folder that is there whole or not at all.

    checkpoints/
        step-00001200/  model.safetensors  ema.safetensors?  optimizer.pt  state.json  (sizes and hashes of the other files)
        latest          the newest one's name, moved last

Every engine writes the same: whole tensors under timm's names, the optimiser's state by parameter name. `optimizer.pt` is read with
weights-only loading; nothing else is a pickle. Version 1 numbered the optimiser's parameters; it is still read.
"""

import dataclasses
import io
import json
import pickle
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from ..cli.errors import DataError
from ..datasets.atomic import fsync_folder, publish_folder, sha256_file, write_bytes, write_text
from ..model_zoo.export import contiguous, read_weights
from .evaluator_config import VAL

FORMAT, VERSION = "bamboo-checkpoint", 2
_READ = (1, 2)

State = Mapping[str, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a run stands: all that the stream, the schedule and the random draws depend on."""

    step: int
    """Optimiser steps done; batch `step` is the next."""
    samples: int
    """Samples consumed."""
    seed: int
    plan_version: int


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Everything that makes a run go on as if nothing had happened."""

    position: Position
    model: State
    average: State | None
    optimizer: dict[str, Any]
    """As `engines.portable` has it; of version 1, as `torch.optim.Optimizer.state_dict` had it."""
    pinned: dict[str, Any]
    """The settings and data hashes that a resumed run must share."""
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """What the evaluators, by name, found after this very step, before the state was saved."""


class CheckpointFolder:
    """The checkpoints of one run; rank 0 writes, every rank reads.

    Args:
        run: the run folder.
        keep: how many of the newest are kept.
        best: how many of those that `best_by` scored best are kept besides; among equals the newest.
        best_by: name of an evaluator.
        every: those after a multiple of so many steps are kept besides; 0: none.
    """

    def __init__(self, run: Path, keep: int, *, best: int = 0, best_by: str = VAL, every: int = 0) -> None:
        self._folder, self._keep, self._every = run / "checkpoints", keep, every
        self._best, self._best_by = best, best_by

    def save(self, checkpoint: Checkpoint) -> Path:
        """Writes a checkpoint, moves `latest` to it, then drops the old ones that are not to be kept.

        Raises:
            OSError: when it cannot be written; the checkpoints before are untouched and nothing half-written stays.
        """
        final = self._folder / f"step-{checkpoint.position.step:08d}"
        if final.exists() and _fault(final) is None:  # a resumed run that came to the same step again
            return final
        temporary = self._folder / f".{final.name}.tmp"
        self._sweep()
        try:
            temporary.mkdir(parents=True)
            _write(temporary, checkpoint)
            if final.exists():  # damaged, and passed over when the run was resumed
                shutil.rmtree(final)
            publish_folder(temporary, final)
            write_text(self._folder / "latest", final.name + "\n")
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._drop()
        fsync_folder(self._folder)
        return final

    def newest(self) -> Path | None:
        """Returns the newest whole checkpoint, or None. A damaged one is named on standard error and passed over."""
        for path in self._by_age():
            fault = _fault(path)
            if fault is None:
                return path
            sys.stderr.write(f"{path}: {fault}; going back to the checkpoint before\n")
        return None

    def _by_age(self) -> list[Path]:
        return sorted(self._folder.glob("step-*"), reverse=True)

    def _drop(self) -> None:
        paths = self._by_age()
        kept = set(paths[: self._keep])
        if self._best:
            scored = [(score, path) for path in paths if (score := _score(path, self._best_by)) is not None]
            kept |= {path for _, path in sorted(scored, reverse=True)[: self._best]}
        if self._every:
            kept |= {path for path in paths if int(path.name.removeprefix("step-")) % self._every == 0}
        for path in paths:
            if path not in kept:
                shutil.rmtree(path)

    def _sweep(self) -> None:
        for leftover in self._folder.glob(".step-*.tmp"):  # of a killed run
            shutil.rmtree(leftover)


def read_checkpoint(path: Path) -> Checkpoint:
    """Returns the checkpoint at `path`.

    Raises:
        DataError: when it is damaged or of a version that is not read.
    """
    fault = _fault(path)
    if fault is not None:
        raise DataError(f"{path}: {fault}")
    tree = json.loads((path / "state.json").read_bytes())
    average = path / "ema.safetensors"
    return Checkpoint(
        position=Position(**tree["position"]),
        model=read_weights(path / "model.safetensors"),
        average=read_weights(average) if average.exists() else None,
        optimizer=_read_optimizer(path / "optimizer.pt"),
        pinned=tree["pinned"],
        scores=_scores(tree),
    )


def _read_optimizer(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise DataError(f"{path}: refused: {str(error).splitlines()[0]}") from None
    return state


def _score(path: Path, evaluator: str) -> float | None:
    try:
        value = _scores(json.loads((path / "state.json").read_bytes())).get(evaluator)
    except (OSError, ValueError, AttributeError):
        return None
    return float(value) if isinstance(value, int | float) else None


def _scores(tree: Mapping[str, Any]) -> dict[str, float]:
    """Returns the scores of a `state.json`; for a time it held one, the top-1 on the validation split."""
    before = {} if tree.get("top1") is None else {VAL: tree["top1"]}
    return {**before, **tree.get("scores", {})}


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    for name, data in _files(checkpoint):
        write_bytes(folder / name, data)
    tree = {
        "format": FORMAT,
        "version": VERSION,
        "position": dataclasses.asdict(checkpoint.position),
        "pinned": checkpoint.pinned,
        "scores": dict(checkpoint.scores),
        "versions": {"torch": torch.__version__},
        "files": {file.name: {"bytes": file.stat().st_size, "sha256": sha256_file(file)} for file in sorted(folder.iterdir())},
    }
    write_text(folder / "state.json", json.dumps(tree, indent=1) + "\n")


def _files(checkpoint: Checkpoint) -> Iterator[tuple[str, bytes]]:
    yield "model.safetensors", safetensors.torch.save(contiguous(checkpoint.model))
    if checkpoint.average is not None:
        yield "ema.safetensors", safetensors.torch.save(contiguous(checkpoint.average))
    buffer = io.BytesIO()
    torch.save(checkpoint.optimizer, buffer)
    yield "optimizer.pt", buffer.getvalue()


def _fault(path: Path) -> str | None:
    """Returns what is wrong with a checkpoint folder, or None."""
    try:
        tree = json.loads((path / "state.json").read_bytes())
        if tree["format"] != FORMAT or tree["version"] not in _READ:
            return f"format {tree['format']} version {tree['version']}; this Bamboo reads {FORMAT} versions {' and '.join(map(str, _READ))}"
        for name, known in tree["files"].items():
            file = path / name
            if not file.exists() or file.stat().st_size != known["bytes"] or sha256_file(file) != known["sha256"]:
                return f"{name} is not as it was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"damaged ({type(error).__name__}: {error})"
    return None
