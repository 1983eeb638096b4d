"""Safetensors files written piece by piece and read by ranges: no more of a file is in memory than is asked for."""

import abc
import dataclasses
import hashlib
import io
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..cli.errors import DataError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The names that safetensors gives to dtypes."""
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

_CHUNK_BYTES = 1 << 24
_MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit


@dataclasses.dataclass(frozen=True)
class FileFacts:
    """What a file must be, byte for byte."""

    bytes: int
    sha256: str


class Stored(abc.ABC):
    """A tensor that lies somewhere, of which any range can be had."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @abc.abstractmethod
    def read(self, start: int, numel: int) -> torch.Tensor:
        """Returns elements [start, start + numel) of the row-major flattening, in memory of their own, on the CPU.

        Raises:
            DataError: when they are not there.
        """

    def whole(self) -> torch.Tensor:
        """Returns all of it, in its shape."""
        return self.read(0, math.prod(self.shape)).view(self.shape)


class InMemory(Stored):
    """A tensor that is whole in memory, or mapped into it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.dtype, self.shape = tensor.dtype, tuple(tensor.shape)
        self._line = tensor.detach().contiguous().view(-1)

    def read(self, start: int, numel: int) -> torch.Tensor:
        """Returns a copy of some elements."""
        return self._line[start : start + numel].clone()


class TensorFile:
    """A safetensors file, of whose tensors any range can be read; the header is looked at when it is first needed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: io.BufferedReader | None = None
        self._header: dict[str, Any] = {}
        self._data = self._size = 0  # where the tensors' bytes begin, and how long the file is

    def read(self, name: str, dtype: torch.dtype, shape: tuple[int, ...], start: int, numel: int) -> torch.Tensor:
        """Returns elements [start, start + numel) of a tensor that must have this dtype and shape.

        Raises:
            DataError: when it has not, or the file is not whole.
        """
        try:
            file = self._opened()
            begin, end = self._place(name, dtype, shape)
            values = torch.empty(numel, dtype=dtype)
            file.seek(self._data + begin + start * dtype.itemsize)
            found = file.readinto(values.view(torch.uint8).numpy().data) if numel else 0
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror or error}") from None
        if found != numel * dtype.itemsize or begin + (start + numel) * dtype.itemsize > end:
            raise DataError(f"{self.path}: truncated: {name} is not all there")
        return values

    def close(self) -> None:
        """Closes the file; the next reading opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def shapes(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Returns (dtype, shape) of every tensor, by name."""
        try:
            self._opened()
            return {name: (DTYPES[entry["dtype"]], tuple(entry["shape"])) for name, entry in self._header.items() if name != "__metadata__"}
        except (OSError, KeyError, TypeError) as error:
            raise DataError(f"{self.path}: damaged: its safetensors header cannot be read ({type(error).__name__}: {error})") from None

    def _opened(self) -> io.BufferedReader:
        if self._file is None:
            self._file = self.path.open("rb")
            if not self._data:
                self._read_header(self._file, os.fstat(self._file.fileno()).st_size)
        return self._file

    def _read_header(self, file: io.BufferedReader, size: int) -> None:
        num_bytes = int.from_bytes(file.read(8), "little")
        if size < 8 or num_bytes > min(_MAX_HEADER_BYTES, size - 8):
            raise DataError(f"{self.path}: truncated or damaged: its header has {num_bytes:,} bytes, the file {size:,}")
        try:
            header = json.loads(file.read(num_bytes))
        except ValueError:
            header = None
        if not isinstance(header, dict):
            raise DataError(f"{self.path}: damaged: its safetensors header cannot be read")
        self._header, self._data, self._size = header, 8 + num_bytes, size

    def _place(self, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[int, int]:
        entry = self._header.get(name)
        try:
            begin, end = entry["data_offsets"]  # type: ignore[index]  # None is a TypeError too
            is_right = entry["dtype"] == DTYPE_NAMES[dtype] and tuple(entry["shape"]) == shape  # type: ignore[index]  # as above
            is_right = is_right and type(begin) is type(end) is int and begin >= 0 and self._data + end <= self._size
            is_right = is_right and end - begin == math.prod(shape) * dtype.itemsize
        except (TypeError, KeyError, ValueError):
            is_right = False
        if not is_right:
            raise DataError(f"{self.path}: holds no {DTYPE_NAMES[dtype]} tensor {name} of shape {list(shape)}")
        return begin, end


def write_tensor_file(path: Path, tensors: Mapping[str, torch.Tensor]) -> FileFacts:
    """Writes a new safetensors file from tensors on the CPU, row-major, without another copy of them, hashed on the way; fsynced.

    Raises:
        OSError: that names `path`, which may be there in part.
    """
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))  # so each lies at a multiple of its element
    header, end = {}, 0
    for name, tensor in ordered:
        header[name] = {"dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    try:
        with path.open("xb") as file:
            parts = [memoryview(len(text).to_bytes(8, "little") + text), *(_bytes(tensor) for _, tensor in ordered)]
            for data in parts:
                for begin in range(0, len(data), _CHUNK_BYTES):
                    digest.update(data[begin : begin + _CHUNK_BYTES])
                    file.write(data[begin : begin + _CHUNK_BYTES])
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = str(path)  # write() knows only a descriptor
        raise
    return FileFacts(8 + len(text) + end, digest.hexdigest())


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data
