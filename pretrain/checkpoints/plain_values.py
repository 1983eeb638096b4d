"""Settings of an optimiser as JSON, exactly: a tuple stays a tuple, and a tensor comes back bit for bit."""

from typing import Any

import torch

from ...cli.errors import DataError
from ...model_zoo.tensor_files import DTYPE_NAMES, DTYPES


def to_plain(value: Any) -> Any:
    """Returns what JSON can hold for numbers, words, None, lists, tuples, mappings with words as keys, and small tensors.

    Raises:
        TypeError: for anything else.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [to_plain(item) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [to_plain(item) for item in value]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: to_plain(item) for key, item in value.items()}}
    if isinstance(value, torch.Tensor):
        line = value.detach().cpu().contiguous().view(-1)
        return {"tensor": DTYPE_NAMES[value.dtype], "shape": list(value.shape), "hex": line.view(torch.uint8).numpy().tobytes().hex()}
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__} among an optimiser's settings")


def from_plain(tree: Any) -> Any:
    """Returns what `to_plain` was given.

    Raises:
        DataError: when this is nothing that it returns.
    """
    if isinstance(tree, list):
        return [from_plain(item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    try:
        if "tuple" in tree:
            return tuple(from_plain(item) for item in tree["tuple"])
        if "dict" in tree:
            return {key: from_plain(item) for key, item in tree["dict"].items()}
        data = bytearray(bytes.fromhex(tree["hex"]))
        return torch.frombuffer(data, dtype=DTYPES[tree["tensor"]]).view(tree["shape"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"an optimiser's setting that cannot be read ({type(error).__name__}: {error})") from None
