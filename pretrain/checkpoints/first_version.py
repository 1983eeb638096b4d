"""Checkpoints of format version 1: rank 0 wrote whole tensors, and the optimiser's state as PyTorch has it, with parameters by number."""

import pickle
from pathlib import Path
from typing import Any

import torch

from ...cli.errors import DataError
from ...model_zoo.tensor_files import InMemory, Stored, TensorFile

FILES_1 = ("model.safetensors", "ema.safetensors", "optimizer.pt")

Read = tuple[dict[str, Stored], dict[str, Stored] | None, dict[str, Any]]


def read_first_version(path: Path) -> Read:
    """Returns (weights, their average or None, optimiser state); the pickle is read with weights-only loading, mapped into memory.

    Raises:
        DataError: when a file is missing or damaged, or the pickle wants more than tensors and plain data.
    """
    average = path / "ema.safetensors"
    model = _tensors(path / "model.safetensors")
    return model, _tensors(average) if average.exists() else None, _optimizer(path / "optimizer.pt")


def _tensors(path: Path) -> dict[str, Stored]:
    file = TensorFile(path)
    return {name: _InFile(file, name, dtype, shape) for name, (dtype, shape) in file.shapes().items()}


def _optimizer(path: Path) -> dict[str, Any]:
    try:
        tree = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
        state = {
            number: {key: InMemory(value) if torch.is_tensor(value) else value for key, value in kept.items()}
            for number, kept in tree["state"].items()
        }
        return {"param_groups": tree["param_groups"], "state": state}
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, AttributeError, TypeError) as error:
        raise DataError(f"{path}: refused: {(str(error).splitlines() or [type(error).__name__])[0]}") from None


class _InFile(Stored):
    """A whole tensor of a file."""

    def __init__(self, file: TensorFile, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        self.dtype, self.shape = dtype, shape
        self._file, self._name = file, name

    def read(self, start: int, numel: int) -> torch.Tensor:
        """Returns some elements."""
        return self._file.read(self._name, self.dtype, self.shape, start, numel)
