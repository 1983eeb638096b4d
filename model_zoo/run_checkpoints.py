"""A run's checkpoint, read: a folder in which every rank's files hold ranges of tensors, and `state.json` says what is where.

    step-00001200/
        model-00001-of-00002.safetensors      rank 0's ranges of weights and buffers, flat, by tensor name
        model-00002-of-00002.safetensors      rank 1's
        ema-…  (if there is an average)       the same of the averaged weights
        optimizer-…                           of the optimiser's state, by `parameter:key`
        state.json                            all else, and an index

`tensors` in `state.json`: group → name → dtype, shape, and `ranges`, a list of [part, start, numel]: that part's file holds numel elements
of the row-major flattening from element start on. The ranges of a tensor tile it exactly. `files`: each one's bytes and SHA-256;
`sha256`: that of the rest of `state.json` in canonical JSON. Nothing is a pickle.
"""

import collections
import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..cli.errors import DataError
from ..datasets.atomic import sha256_file, sha256_json
from .tensor_files import DTYPES, Stored, TensorFile

FORMAT, VERSION, STATE_NAME = "bamboo-checkpoint", 2, "state.json"
GROUPS = ("model", "ema", "optimizer")
READ_VERSIONS = (1, 2)

_MAX_OPEN_FILES = 64


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where a tensor lies: (part, start, numel) of each range, by start."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    ranges: tuple[tuple[int, int, int], ...]


Index = dict[str, dict[str, Entry]]
"""Entries by group and name."""


def file_name(group: str, part: int, world_size: int) -> str:
    """Returns the name of a part's file; parts count from 1."""
    return f"{group}-{part:05d}-of-{world_size:05d}.safetensors"


def read_state(path: Path) -> dict[str, Any]:
    """Returns the `state.json` of a checkpoint folder, of a version that is read; of version 2, with its own hash checked.

    Raises:
        DataError: when it is missing, damaged, or of another version, which is named.
    """
    try:
        state = json.loads((path / STATE_NAME).read_bytes())
        kind, version = state["format"], state["version"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: damaged {STATE_NAME} ({type(error).__name__}: {error})") from None
    if kind != FORMAT or version not in READ_VERSIONS:
        reads = " and ".join(map(str, READ_VERSIONS))
        raise DataError(f"{path}: format {kind} version {version}; this Bamboo reads {FORMAT} versions {reads}")
    if version > 1 and state.get("sha256") != sha256_json({name: value for name, value in state.items() if name != "sha256"}):
        raise DataError(f"{path}: damaged {STATE_NAME}: its contents are not what its sha256 says")
    return dict(state)


def read_index(state: Mapping[str, Any], path: Path) -> Index:
    """Returns the index of a version-2 state, once it is known to be one: ranges that tile each tensor, in files that are large enough.

    Raises:
        DataError: that names the first fault.
    """
    try:
        files, world_size = state["files"], state["world_size"]
        groups = [name for name in GROUPS if name in state["tensors"]]
        if type(world_size) is not int or len(files) != world_size * len(groups) or set(state["tensors"]) != set(groups):
            raise DataError(f"{path}: damaged index: {len(files)} files of groups {sorted(state['tensors'])} by {world_size} ranks")
        sizes = {group: [files[file_name(group, part, world_size)]["bytes"] for part in range(1, world_size + 1)] for group in groups}
        return {
            group: {name: _entry(entry, sizes[group], f"{path}: {group} tensor {name}") for name, entry in state["tensors"][group].items()}
            for group in groups
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: damaged index ({type(error).__name__}: {error})") from None


def _entry(tree: Mapping[str, Any], sizes: list[int], what: str) -> Entry:
    """Returns an entry; each range must fit into its file, so nothing larger than the files is ever allocated."""
    dtype, shape = DTYPES[tree["dtype"]], tuple(_natural(side, what) for side in tree["shape"])
    ranges = sorted((tuple(_natural(number, what) for number in item) for item in tree["ranges"]), key=lambda item: item[1])
    place = 0
    for part, start, numel in ranges:
        if not 1 <= part <= len(sizes) or numel * dtype.itemsize > sizes[part - 1]:
            raise DataError(f"{what}: elements {start:,} to {start + numel:,} do not fit into part {part}")
        if start != place:
            raise DataError(f"{what}: {'its ranges overlap' if start < place else 'a range is missing'} at element {min(start, place):,}")
        place += numel
    if place != math.prod(shape):
        raise DataError(f"{what}: its ranges end at element {place:,} of {math.prod(shape):,}")
    if len({part for part, _, _ in ranges}) != len(ranges):
        raise DataError(f"{what}: two of its ranges are in the same part")
    return Entry(dtype, shape, tuple((part, start, numel) for part, start, numel in ranges))


def _natural(value: Any, what: str) -> int:
    if type(value) is not int or value < 0:
        raise DataError(f"{what}: {value!r} where a count should be")
    return value


def file_fault(path: Path, files: Mapping[str, Any], names: Iterable[str]) -> str:
    """Returns what is wrong with the first bad one of some of a checkpoint's files, or nothing; each is read and hashed."""
    for name in names:
        file, known = path / name, files[name]
        try:
            if file.stat().st_size != known["bytes"] or sha256_file(file) != known["sha256"]:
                return f"{name} is not as it was written"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror or error})"
    return ""


def stray_fault(path: Path, files: Iterable[str]) -> str:
    """Returns which file is there that should not be, or nothing; hidden ones are a file system's own."""
    expected = {*files, STATE_NAME}
    stray = sorted(entry.name for entry in path.iterdir() if entry.name not in expected and not entry.name.startswith("."))
    return f"{stray[0]} does not belong to it" if stray else ""


class RunCheckpoint:
    """A version-2 checkpoint, open for reading: tensors are read when asked for, no more of them than asked for.

    Args:
        path: its folder. Hashes of its files are not checked here.

    Raises:
        DataError: when its state or its index is damaged.
    """

    def __init__(self, path: Path, state: Mapping[str, Any]) -> None:
        self.path, self.state = path, state
        self._index = read_index(state, path)
        self._files: dict[str, TensorFile] = {}
        self._open: collections.OrderedDict[str, TensorFile] = collections.OrderedDict()

    def tensors(self, group: str) -> dict[str, Stored] | None:
        """Returns the tensors of a group by name, or None where the checkpoint has no such group."""
        if group not in self._index:
            return None
        return {name: _Ranged(self, group, name, entry) for name, entry in self._index[group].items()}

    def file(self, group: str, part: int) -> TensorFile:
        """Returns a part's file; those used longest ago are closed, lest a process has too many open."""
        name = file_name(group, part, self.state["world_size"])
        file = self._files.setdefault(name, TensorFile(self.path / name))
        self._open[name] = file
        self._open.move_to_end(name)
        if len(self._open) > _MAX_OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        return file


class _Ranged(Stored):
    """A tensor that lies in ranges."""

    def __init__(self, checkpoint: RunCheckpoint, group: str, name: str, entry: Entry) -> None:
        self.dtype, self.shape = entry.dtype, entry.shape
        self._checkpoint, self._group, self._name, self._ranges = checkpoint, group, name, entry.ranges

    def read(self, start: int, numel: int) -> torch.Tensor:
        """Returns some elements, from whichever files hold them."""
        found = []
        for part, begin, length in self._ranges:
            low, high = max(start, begin), min(start + numel, begin + length)
            if low < high:
                file = self._checkpoint.file(self._group, part)
                found.append(file.read(self._name, self.dtype, (length,), low - begin, high - low))
        values = found[0] if len(found) == 1 else torch.cat(found) if found else torch.empty(0, dtype=self.dtype)
        if len(values) != numel:
            raise DataError(f"{self._checkpoint.path}: {self._group} tensor {self._name} has no elements {start:,} to {start + numel:,}")
        return values
