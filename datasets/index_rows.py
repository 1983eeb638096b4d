"""Rows of an index looked up here and there: read by blocks, of which those in use are kept, and never through the map of the file."""

import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .mapped import MappedFile

_BITS = 12
_BLOCK_ROWS = 1 << _BITS  # a few pages of each column
_MOST_BLOCKS = 384  # 38 MB; with more than 1.5 million rows in use at a time blocks are read again and again, some 30 µs each time


class StreamedColumns(NamedTuple):
    """The columns of an index that a stream needs, N rows, and the file that they are views of; None: they lie in memory."""

    shard: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    size: npt.NDArray[np.int64]
    label_starts: npt.NDArray[np.int32]  # int32[N + 1] into `labels`
    labels: npt.NDArray[np.int32]
    file: MappedFile | None = None


class IndexRows:
    """What a stream asks of an index, for rows 0 ≤ row < N in any order; safe to share between threads, but not with a forked child.

    All raise DataError where the file has been cut since it was opened.
    """

    def __init__(self, columns: StreamedColumns, most_blocks: int = _MOST_BLOCKS) -> None:
        num_blocks = -(-len(columns.shard) // _BLOCK_ROWS)
        self._columns, self._lock = columns, threading.Lock()
        self._slots = np.full(num_blocks, -1, np.int32)  # where each block lies, -1: nowhere
        self._held = np.full(min(most_blocks, num_blocks), -1, np.int64)  # which block lies in each slot
        self._labelled = np.zeros(len(self._held), np.bool_)  # in which slots the labels, too, have been read
        self._oldest = 0  # slot that is filled next: a stream moves on through the shards
        num_rows = len(self._held) * _BLOCK_ROWS
        self._shard, self._offset, self._size = np.empty(num_rows, np.int32), np.empty(num_rows, np.int64), np.empty(num_rows, np.int64)
        self._label = np.empty(num_rows, np.int32)

    def place(self, row: int) -> tuple[int, int, int]:
        """Returns (shard, offset, size)."""
        block = row >> _BITS
        with self._lock:
            if (slot := self._slots.item(block)) < 0:
                slot = self._load(block)
            at = slot << _BITS | row & _BLOCK_ROWS - 1
            return self._shard.item(at), self._offset.item(at), self._size.item(at)

    def places(self, rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Returns (shard, offset, size) of each row."""
        shard, offset, size = (np.empty(len(rows), column.dtype) for column in (self._shard, self._offset, self._size))
        for piece in self._pieces(rows):
            with self._lock:
                at = self._loaded(rows[piece])
                shard[piece], offset[piece], size[piece] = self._shard[at], self._offset[at], self._size[at]
        return shard, offset, size

    def first_labels(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """Returns the first class id of each row, -1: none."""
        labels = np.empty(len(rows), np.int32)
        for piece in self._pieces(rows):
            with self._lock:
                at = self._loaded(rows[piece])
                for slot in np.unique(at[~self._labelled[at >> _BITS]] >> _BITS).tolist():
                    self._load_labels(slot)
                labels[piece] = self._label[at]
        return labels

    def _pieces(self, rows: npt.NDArray[np.int64]) -> Iterator[slice]:
        """Yields stretches for which there is room, though each row may lie in a block of its own."""
        return (slice(start, start + len(self._held)) for start in range(0, len(rows), max(len(self._held), 1)))

    def _loaded(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Returns where the rows lie, once they do; loading some may drop others, so it looks again, until all have come last."""
        blocks = rows >> _BITS
        while len(missing := blocks[self._slots[blocks] < 0]):
            for block in np.unique(missing).tolist():
                self._load(block)
        at: npt.NDArray[np.int64] = (self._slots[blocks].astype(np.int64) << _BITS) | (rows & _BLOCK_ROWS - 1)
        return at

    def _load(self, block: int) -> int:
        """Reads a block in the place of the one that came first, without its labels; returns its slot."""
        columns, slot = self._columns, self._oldest
        if (dropped := self._held.item(slot)) >= 0:
            self._slots[dropped] = self._held[slot] = -1
        lying = self._lying(slot, block)
        for column, rows in ((columns.shard, self._shard), (columns.offset, self._offset), (columns.size, self._size)):
            self._read(column, block << _BITS, rows[lying])
        self._held[slot], self._slots[block], self._labelled[slot] = block, slot, False
        self._oldest = (slot + 1) % len(self._held)
        return slot

    def _load_labels(self, slot: int) -> None:
        """Reads the first label of each row of a block that is there."""
        block = self._held.item(slot)
        into = self._label[self._lying(slot, block)]
        starts = np.empty(len(into) + 1, np.int32)
        self._read(self._columns.label_starts, block << _BITS, starts)
        labels = np.empty(starts.item(-1) - starts.item(0), np.int32)
        self._read(self._columns.labels, starts.item(0), labels)
        has_any = starts[1:] > starts[:-1]
        into[:] = -1
        into[has_any] = labels[starts[:-1][has_any] - starts[0]]
        self._labelled[slot] = True

    def _lying(self, slot: int, block: int) -> slice:
        """Returns where the rows of a block lie in that slot."""
        return slice(slot << _BITS, (slot << _BITS) + min(_BLOCK_ROWS, len(self._columns.shard) - (block << _BITS)))

    def _read(self, column: npt.NDArray[Any], start: int, into: npt.NDArray[Any]) -> None:
        if self._columns.file is None:
            into[:] = column[start : start + len(into)]
        else:
            self._columns.file.read(column, start, into)
