"""Whether an index says only what can be: its rows in the order of the shards, their bytes inside them, labels that are classes.

An index that somebody else made would otherwise lead to reads outside of the tars, to other people's samples, or to labels that no class
has, and only when its rows come up. The pass reads the columns once, a stretch at a time, and keeps none of it in memory.
"""

import contextlib
import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..cli.errors import DataError
from .atomic import sha256_json
from .index import Index, index_of
from .manifest import Manifest
from .remote.cache import cache_home

_STRETCH_ROWS = 1 << 16
_MARKED_ROWS = 1 << 22  # below, a pass costs less than a tenth of a second
_FIRST_OFFSET = 512  # behind the member's tar header

_Wrong = tuple[npt.NDArray[np.bool_], str]
"""bool[rows] of a stretch, True where a row is wrong, and what is wrong with it; the first that is found is reported."""


def check_index(path: Path, manifest: Manifest, shown: str) -> None:
    """Checks all rows of the index at `path`, which `read_index` has taken, against the manifest.

    Large indexes are checked once per machine: a mark in `checked` below BAMBOO_CACHE stands for the file (path, size, time of change) and
    for what the manifest says of the shards. Where it cannot be written, every opening checks.

    Raises:
        DataError: naming the file as `shown`, the first sample that is wrong, and what is wrong with it.
    """
    mark = None
    if manifest.num_samples >= _MARKED_ROWS:
        about = path.stat()
        identity = [str(path.absolute()), about.st_size, about.st_mtime_ns, about.st_ino]
        shards = [[entry.num_samples, entry.size_bytes] for entry in manifest.shards]
        mark = cache_home() / "checked" / sha256_json([identity, shards, len(manifest.classes)])
        if mark.exists():
            return
    _check(path, manifest, shown)
    if mark is not None:
        with contextlib.suppress(OSError):
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()


def _check(path: Path, manifest: Manifest, shown: str) -> None:
    """Checks through a mapping of its own, whose pages are given back after each stretch."""
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)  # closed with the last view of it
    index = index_of(pa.ipc.open_file(pa.py_buffer(mapped)).read_all(), path)
    ends = np.cumsum([0, *(entry.num_samples for entry in manifest.shards)], dtype=np.int64)
    sizes = np.array([entry.size_bytes for entry in manifest.shards], np.int64)
    for start in range(0, len(index), _STRETCH_ROWS):
        rows = slice(start, min(start + _STRETCH_ROWS, len(index)))
        for wrong, reason in (*_wrong_places(index, rows, ends, sizes), *_wrong_labels(index, rows, len(manifest.classes))):
            if wrong.any():
                raise DataError(f"{shown}: damaged: sample {start + int(wrong.argmax())}: {reason}")
        mapped.madvise(mmap.MADV_DONTNEED)


def _wrong_places(index: Index, rows: slice, ends: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> Iterator[_Wrong]:
    first, stop = (int(np.searchsorted(ends, row, "right")) for row in (rows.start, rows.stop - 1))
    inside = np.clip(ends[first - 1 : stop + 1], rows.start, rows.stop)
    counts = inside[1:] - inside[:-1]
    ordinals = np.repeat(np.arange(first - 1, stop, dtype=np.int32), counts)
    yield index.shard[rows] != ordinals, "its shard is not the one that dataset.json's counts give"
    offset, size = index.offset[rows], index.size[rows]
    yield offset < _FIRST_OFFSET, f"its bytes begin before byte {_FIRST_OFFSET} of its shard"
    yield (size < 0) | (size > np.repeat(sizes[first - 1 : stop], counts) - offset), "its bytes do not lie inside its shard"


def _wrong_labels(index: Index, rows: slice, num_classes: int) -> Iterator[_Wrong]:
    label_counts = np.diff(index.label_starts[rows.start : rows.stop + 1])
    counts = np.diff(index.confidence_starts[rows.start : rows.stop + 1])
    yield from _wrong_starts(index.label_starts, rows, label_counts, len(index.labels), "labels")
    yield from _wrong_starts(index.confidence_starts, rows, counts, len(index.confidences), "confidences")
    yield (counts != 0) & (counts != label_counts), "it has another number of confidences than of labels"
    labels = index.labels[index.label_starts[rows.start] : index.label_starts[rows.stop]]
    wrong = (labels < 0) | (labels >= num_classes)
    yield _rows_of(wrong, label_counts), f"a label is not in [0, {num_classes})"
    confidences = index.confidences[index.confidence_starts[rows.start] : index.confidence_starts[rows.stop]]
    yield _rows_of(~((confidences >= 0) & (confidences <= 1)), counts), "a confidence is not in [0, 1]"


def _wrong_starts(starts: npt.NDArray[np.int32], rows: slice, counts: npt.NDArray[np.int32], length: int, what: str) -> Iterator[_Wrong]:
    """Starts rise, so their differences may not overflow either: what is negative there is refused whatever it stands for."""
    first, last = int(starts[rows.start]), int(starts[rows.stop])
    inside = 0 <= first <= last <= length and last - first == int(counts.sum(dtype=np.int64))
    yield (counts < 0) | (not inside), f"its {what} do not lie inside their column"


def _rows_of(wrong: npt.NDArray[np.bool_], counts: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """Returns bool[rows] from bool[values], of which each row has `counts`; all False at no cost where none is True."""
    if not wrong.any():
        return wrong[:0]
    return np.bincount(np.repeat(np.arange(len(counts)), counts), wrong, minlength=len(counts)) > 0
