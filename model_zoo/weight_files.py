"""Reading a checkpoint file without running anything that it holds."""

import argparse
import collections
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..cli.errors import DataError
from .export import read_weights
from .file_kinds import weight_file_kind


def _plain_dict(factory: Any = None, *args: Any) -> collections.OrderedDict[Any, Any]:
    """Stands in for a defaultdict: what it holds, without what it would make."""
    return collections.OrderedDict(*args)


# Plain data that published checkpoints carry beside their tensors: the command line they were trained with, a best score as a numpy
# scalar (its function's module has two names, numpy 1's and 2's), counts in a defaultdict, which the loader can make but not fill.
_SCALAR = np.float64(0).__reduce__()[0]
_NUMBERS = "?bhilqBHILQefdFD"
_HARMLESS: tuple[Any, ...] = (
    argparse.Namespace,
    (_plain_dict, "collections.defaultdict"),
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *dict.fromkeys(type(np.dtype(code)) for code in _NUMBERS),
    *(bool, int, float, str, list, dict, tuple),  # what a defaultdict makes
)


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
        # torch takes any path that ends so for the safetensors which this is not, and maps nothing but a path into memory
        is_misnamed = path.suffix == ".safetensors"
        with path.open("rb") as file, torch.serialization.safe_globals(list(_HARMLESS)):
            is_mapped = kind == "zip" and not is_misnamed
            return torch.load(path if is_mapped else file, map_location="cpu", weights_only=True, mmap=is_mapped or None)
    except pickle.UnpicklingError as error:
        raise DataError(f"{path}: refused: {_reason(error)}; nothing of it was run") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, AssertionError) as error:
        raise DataError(f"{path}: truncated or damaged: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from None


def _reason(error: Exception) -> str:
    """Returns the sentence of torch's message that names what the pickle wanted, without the advice to allow it that follows."""
    message = " ".join(str(error).split())
    for opening in ("from a trusted source. ", "WeightsUnpickler error: "):  # how to load it all the same comes first, too
        message = message.rpartition(opening)[2]
    for advice in ("Please ", "Check the documentation"):
        message = message.partition(advice)[0]
    return message.strip().rstrip(".")[:300] or "not readable"
