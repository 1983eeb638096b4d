"""CIFAR-10 and CIFAR-100 as their archives hold them: pickles, or the binary version."""

import dataclasses
import functools
import hashlib
import io
import itertools
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...cli.errors import DataError
from ..atomic import sha256_json
from .facts import DownstreamSet, SplitName
from .listed import LabelledRows
from .listing import from_zero


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Archive:
    """File names and keys of one of the two sets; the binary version has the same names with other endings."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    labels_key: bytes
    names_key: bytes
    binary_names: str
    label_bytes: int
    """Bytes before the pixels of a binary row; the last of them is the label."""

    file: str


_ARCHIVES = {
    "cifar10": _Archive(
        train=tuple(f"data_batch_{number}" for number in range(1, 6)),
        test=("test_batch",),
        names="batches.meta",
        labels_key=b"labels",
        names_key=b"label_names",
        binary_names="batches.meta.txt",
        label_bytes=1,
        file="cifar-10-python.tar.gz",
    ),
    "cifar100": _Archive(
        train=("train",),
        test=("test",),
        names="meta",
        labels_key=b"fine_labels",
        names_key=b"fine_label_names",
        binary_names="fine_label_names.txt",
        label_bytes=2,
        file="cifar-100-python.tar.gz",
    ),
}
_PIXELS = 3 * 32 * 32


class CifarBatches(LabelledRows):
    """A split of CIFAR in one of its archives' forms; pickles are read without running any code of theirs.

    Pickles and binary files of the same images have the same `data_hash`.

    Raises:
        DataError: for a missing or damaged file, one that is a copy of another, and for labels that are out of range.
    """

    def __init__(self, name: str, folder: Path, split: SplitName, *, binary: bool = False) -> None:
        self._origin = (name, folder, split, binary)
        archive = _ARCHIVES[name]
        files = archive.train if split == "train" else archive.test
        read, read_names = (_read_binary, _read_binary_names) if binary else (_read_batch, _read_names)
        batches = [read(folder, file, archive) for file in files]
        _refuse_repeated(folder, files, [pixels for pixels, _ in batches])
        self._pixels = np.concatenate([pixels for pixels, _ in batches]).reshape(-1, 3, 32, 32)
        labels, class_names = np.concatenate([labels for _, labels in batches]), read_names(folder, archive)
        if not len(labels):
            raise DataError(f"{folder}: the {split} split is empty")
        super().__init__(from_zero(labels, len(class_names), first=0, source=f"{folder} ({split})"), class_names)

    @functools.cached_property
    def data_hash(self) -> str:
        """Hex SHA-256 over pixels, labels and class names."""
        pixels = hashlib.sha256(self._pixels.tobytes()).hexdigest()
        return sha256_json([pixels, self._labels.tolist(), self._class_names])

    def holds(self, other: "CifarBatches") -> bool:
        """Whether all images of the other split lie in this one, one after another in the same order, whatever their labels."""
        num_rows = len(other)
        starts = np.flatnonzero((self._pixels[:, 0, 0] == other._pixels[0, 0, 0]).all(axis=1))
        return any(np.array_equal(self._pixels[start : start + num_rows], other._pixels) for start in starts.tolist())

    def load(self, sample: int) -> torch.Tensor:
        """Returns uint8[3, 32, 32]."""
        return torch.from_numpy(self._pixels[sample].copy())

    def name(self, sample: int) -> str:
        """Returns `folder:split:number`."""
        _, folder, split, _ = self._origin
        return f"{folder.name}:{split}:{sample}"

    def __reduce__(self) -> tuple[object, tuple[str, Path, SplitName, bool]]:
        return _reopened, self._origin  # a spawned worker reads the files again, rather than 150 MB through a pipe


def read_pickles(described: DownstreamSet, folder: Path, split: SplitName) -> CifarBatches:
    """Returns a split of `cifar-10-batches-py` or `cifar-100-python`."""
    return CifarBatches(described.name, folder, split)


def read_binary(described: DownstreamSet, folder: Path, split: SplitName) -> CifarBatches:
    """Returns a split of `cifar-10-batches-bin` or `cifar-100-binary`."""
    return CifarBatches(described.name, folder, split, binary=True)


def _reopened(name: str, folder: Path, split: SplitName, binary: bool) -> CifarBatches:
    return CifarBatches(name, folder, split, binary=binary)


def _refuse_repeated(folder: Path, files: Sequence[str], batches: Sequence[npt.NDArray[np.uint8]]) -> None:
    for (first, pixels), (second, others) in itertools.combinations(zip(files, batches, strict=True), 2):
        if len(pixels) and np.array_equal(pixels[:1], others[:1]) and np.array_equal(pixels, others):
            raise DataError(f"{folder}: {second} holds the images of {first}; extract the archive again")


class _PlainUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays, bytes, strings, numbers, lists and dicts, and refuses to look up anything else."""

    _ALLOWED = frozenset(
        (module, name)
        for core in ("numpy.core", "numpy._core")
        for module, name in ((f"{core}.multiarray", "_reconstruct"), (f"{core}.numeric", "_frombuffer"))
    ) | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which a data file has no use for; refused")
        return super().find_class(module, name)


def _unpickle(path: Path, archive: _Archive) -> dict[bytes, Any]:
    try:
        tree = _PlainUnpickler(io.BytesIO(_read(path, archive)), encoding="bytes").load()
    except DataError:
        raise
    # a damaged pickle raises whatever its opcodes ran into (EOFError, IndexError, ValueError, TypeError, MemoryError, …)
    except Exception as error:  # noqa: BLE001
        raise DataError(f"{path}: cannot be read: {error or type(error).__name__}") from None
    if not isinstance(tree, dict):
        raise DataError(f"{path}: holds a {type(tree).__name__}, not CIFAR's dictionary")
    return {key.encode() if isinstance(key, str) else key: value for key, value in tree.items()}


def _read(path: Path, archive: _Archive) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: missing; extract the archive again: tar xzf {archive.file}") from None


def _read_batch(folder: Path, file: str, archive: _Archive) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    path, key = folder / file, archive.labels_key
    tree = _unpickle(path, archive)
    pixels, labels = tree.get(b"data"), tree.get(key)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != _PIXELS:
        raise DataError(f"{path}: 'data' is not a uint8 array of rows of {_PIXELS}")
    if not isinstance(labels, list) or len(labels) != len(pixels) or not all(isinstance(label, int) for label in labels):
        raise DataError(f"{path}: {key.decode()!r} is not a list of {len(pixels)} numbers")
    return pixels, np.array(labels, np.int64)


def _read_names(folder: Path, archive: _Archive) -> tuple[str, ...]:
    path = folder / archive.names
    names = _unpickle(path, archive).get(archive.names_key)
    if not isinstance(names, list) or not names or not all(isinstance(name, bytes | str) for name in names):
        raise DataError(f"{path}: {archive.names_key.decode()!r} is not a list of names")
    return tuple(name.decode("ascii", "replace") if isinstance(name, bytes) else name for name in names)


def _read_binary(folder: Path, file: str, archive: _Archive) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    path, row_bytes = folder / f"{file}.bin", archive.label_bytes + _PIXELS
    data = np.frombuffer(_read(path, archive), np.uint8)
    if len(data) % row_bytes:
        raise DataError(f"{path}: truncated: {len(data):,} bytes are not whole rows of {row_bytes:,}")
    rows = data.reshape(-1, row_bytes)
    return rows[:, archive.label_bytes :], rows[:, archive.label_bytes - 1].astype(np.int64)


def _read_binary_names(folder: Path, archive: _Archive) -> tuple[str, ...]:
    path = folder / archive.binary_names
    names = _read(path, archive).decode("ascii", "replace").split()
    if not names:
        raise DataError(f"{path}: empty; it names the classes")
    return tuple(names)
