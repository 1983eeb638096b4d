"""What kind of checkpoint file this is, from its bytes alone: nothing of it is loaded, let alone run."""

import json
import zipfile
from pathlib import Path
from typing import Literal

from ..cli.errors import DataError
from ..datasets.remote.download import is_html

Kind = Literal["safetensors", "zip", "pickle"]

_MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit


def weight_file_kind(path: Path) -> Kind:
    """Returns the kind of a checkpoint file: safetensors, torch's zip archive, or torch's older pickle.

    Raises:
        DataError: when it is none of them, truncated, a web page, or a TorchScript archive, which holds code.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(64)
    if is_html(head):
        raise DataError(f"{path}: is a web page, not a checkpoint")
    if head.startswith(b"PK\x03\x04"):
        _check_zip(path)
        return "zip"
    if head[:1] == b"\x80" and head[1:2] <= b"\x05" and len(head) > 2:
        return "pickle"
    if len(head) > 8 and head[8:9] == b"{":
        _check_safetensors(path, size)
        return "safetensors"
    begins = f"it begins with {head[:8]!r}" if head else "it is empty"
    raise DataError(f"{path}: no checkpoint that can be read (safetensors, or a PyTorch .pth); {begins}")


def _check_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise DataError(f"{path}: truncated or damaged: {error}") from None
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        raise DataError(f"{path}: a TorchScript archive, which holds code; save its state_dict() as safetensors where you trust it")
    if any(name.endswith(".npy") for name in names):
        raise DataError(f"{path}: a numpy archive (.npz), which is not read; the registry names converted files of the same weights")
    if not any(name.endswith("data.pkl") for name in names):
        raise DataError(f"{path}: a zip archive, but not one that torch.save wrote")


def _check_safetensors(path: Path, size: int) -> None:
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if header_bytes > min(_MAX_HEADER_BYTES, size - 8):
            raise DataError(f"{path}: truncated or damaged: its header has {header_bytes:,} bytes, the file {size:,}")
        header = file.read(header_bytes)
    try:
        ends = [entry["data_offsets"][1] for name, entry in json.loads(header).items() if name != "__metadata__"]
        wanted = 8 + header_bytes + max(ends, default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise DataError(f"{path}: damaged: its safetensors header cannot be read") from None
    if size != wanted:
        raise DataError(f"{path}: truncated or damaged: it has {size:,} bytes, its header says {wanted:,}")
