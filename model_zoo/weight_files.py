"""Reading a checkpoint file without running anything that it holds."""

import argparse
import pickle
from pathlib import Path
from typing import Any

import torch

from ..cli.errors import DataError
from .export import read_weights
from .file_kinds import weight_file_kind

# Plain data that published checkpoints carry beside their tensors: the command line they were trained with.
_HARMLESS = (argparse.Namespace,)


def read_checkpoint(path: Path) -> Any:
    """Returns what a checkpoint file holds: tensors, mostly in nested dicts, on the CPU.

    safetensors are read as such. Pickles are read by torch's weights-only loader, which builds tensors and plain data and runs no code;
    tensors of the zip form are memory-mapped.

    Raises:
        DataError: when the file is missing, truncated, of another kind, or a pickle that wants more than tensors and plain data.
    """
    try:
        kind = weight_file_kind(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    if kind == "safetensors":
        return read_weights(path)
    try:
        with torch.serialization.safe_globals(list(_HARMLESS)):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=kind == "zip" or None)
    except pickle.UnpicklingError as error:
        raise DataError(f"{path}: refused: {_reason(error)}; nothing of it was run") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, AssertionError) as error:
        raise DataError(f"{path}: truncated or damaged: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from None


def _reason(error: Exception) -> str:
    """Returns the sentence of torch's message that names what the pickle wanted."""
    lines = [" ".join(line.split()) for line in str(error).splitlines()]
    named = [line for line in lines if "GLOBAL" in line or "WeightsUnpickler error" in line or "Unsupported" in line]
    return (named or lines or ["not readable"])[0].removeprefix("WeightsUnpickler error: ").rstrip(".")[:300]
