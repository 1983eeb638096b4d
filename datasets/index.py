"""The sample index of a shard folder: `index.arrow`, one row per sample, memory-mapped.

Columns (N samples, L labels in all):
    shard int32[N]       ordinal of the shard in dataset.json
    offset, size int64[N]  the image member's bytes inside the tar
    width, height int32[N] pixels as displayed, that is after EXIF orientation
    labels list<int32>[N]  class ids; empty = none known; several = multi-label
    confidences list<float16>[N]  in [0, 1], one per label; null where every confidence is 1
    key_hash uint64[N]   BLAKE2b-64 of the sample key (the key itself stands in the tar)
"""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..cli.errors import DataError
from .atomic import atomic_file
from .index_rows import IndexRows, StreamedColumns
from .mapped import MappedFile

FILE_NAME = "index.arrow"

_STRETCH_ROWS = 1 << 20

SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("labels", pa.list_(pa.int32())),
        ("confidences", pa.list_(pa.float16())),
        ("key_hash", pa.uint64()),
    ],
    metadata={"bamboo.index": "1"},
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One sample of the index; `confidences` is None where every label is certain."""

    shard: int
    offset: int
    size: int
    width: int
    height: int
    labels: Sequence[int]
    confidences: Sequence[float] | None
    key_hash: int


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """The columns of `index.arrow` as numpy views of the memory map; `label_starts` is int32[N + 1] into `labels`.

    The views are for passes through the columns, which give the pages back as they go; single rows are `rows`' business.
    """

    shard: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    size: npt.NDArray[np.int64]
    width: npt.NDArray[np.int32]
    height: npt.NDArray[np.int32]
    label_starts: npt.NDArray[np.int32]
    labels: npt.NDArray[np.int32]
    confidences: npt.NDArray[np.float16]
    confidence_starts: npt.NDArray[np.int32]
    key_hash: npt.NDArray[np.uint64]
    file: MappedFile | None = None
    """What the columns are views of; None: they lie in memory."""

    def __len__(self) -> int:
        return len(self.shard)

    @functools.cached_property
    def rows(self) -> IndexRows:
        """Look-ups of single rows, which make nothing of the map resident."""
        return IndexRows(StreamedColumns(self.shard, self.offset, self.size, self.label_starts, self.labels, self.file))

    def reset_after_fork(self) -> None:
        """In a forked child, before any of its threads: looks rows up anew, since a thread of the parent may have been at it."""
        vars(self).pop("rows", None)

    def give_back(self) -> None:
        """Unmaps the pages that a pass has touched."""
        if self.file is not None:
            self.file.give_back()

    def labels_of(self, sample: int) -> npt.NDArray[np.int32]:
        """Returns the class ids of one sample."""
        return self.labels[self.label_starts[sample] : self.label_starts[sample + 1]]

    def confidences_of(self, sample: int) -> npt.NDArray[np.float16]:
        """Returns the confidences of one sample, one per label."""
        start, stop = self.confidence_starts[sample : sample + 2]
        if start == stop:
            return np.ones(len(self.labels_of(sample)), np.float16)
        return self.confidences[start:stop]

    def single_labels(self) -> npt.NDArray[np.int32]:
        """Returns int32[N] class ids, -1 where a sample has no label; for a multi-label sample its first label.

        Where every sample has exactly one label it is the memory map itself, which takes no memory of the process and is read-only.
        """
        if len(self.labels) == len(self) and all((counts == 1).all() for _, counts in self._label_counts()):
            first = self.label_starts[0] if len(self) else 0
            return self.labels[first : first + len(self)]
        single = np.full(len(self), -1, np.int32)
        for rows, counts in self._label_counts():
            labelled = counts > 0
            single[rows][labelled] = self.labels[self.label_starts[rows][labelled]]
        return single

    @property
    def is_multi_label(self) -> bool:
        """Whether any sample has more than one label."""
        return any((counts > 1).any() for _, counts in self._label_counts())

    @property
    def num_unlabelled(self) -> int:
        """Samples without a label."""
        return sum(int((counts == 0).sum()) for _, counts in self._label_counts())

    def _label_counts(self) -> Iterator[tuple[slice, npt.NDArray[np.int32]]]:
        """Yields (rows, labels of each) a stretch at a time, so that no array of all samples is made."""
        for start in range(0, len(self), _STRETCH_ROWS):
            stop = min(start + _STRETCH_ROWS, len(self))
            yield slice(start, stop), np.diff(self.label_starts[start : stop + 1])
            self.give_back()


def hash_key(key: str) -> int:
    """Returns the 64-bit hash under which the index knows a sample key."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def to_table(rows: Iterable[Row]) -> Any:
    """Returns the rows as an Arrow table of `SCHEMA`."""
    listed = list(rows)
    columns = [
        [row.shard for row in listed],
        [row.offset for row in listed],
        [row.size for row in listed],
        [row.width for row in listed],
        [row.height for row in listed],
        [list(row.labels) for row in listed],
        [None if row.confidences is None else [np.float16(value) for value in row.confidences] for row in listed],
        [row.key_hash for row in listed],
    ]
    arrays = [pa.array(values, type=field.type) for values, field in zip(columns, SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def write_index(path: Path, tables: Sequence[Any]) -> None:
    """Writes Arrow tables of `SCHEMA` as one index file with a single record batch, so that reading it copies nothing."""
    table = pa.concat_tables(tables) if tables else SCHEMA.empty_table()
    with atomic_file(path) as file, pa.ipc.new_file(file, SCHEMA) as writer:
        writer.write_table(table.combine_chunks())


def read_table(path: Path) -> Any:
    """Returns an index file as an Arrow table over the memory map.

    Raises:
        DataError: when the file is missing, truncated, or not of this schema.
    """
    return _open(path)[0]


def _open(path: Path) -> tuple[Any, MappedFile]:
    try:
        file = MappedFile(path)
        table = pa.ipc.open_file(file.buffer).read_all()
        table.validate()  # the ends of its buffers, which the file may place beyond its own
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    if not table.schema.equals(SCHEMA):
        raise DataError(f"{path}: its columns are {table.schema.names}, not {SCHEMA.names}")
    return table, file


def read_index(path: Path) -> Index:
    """Returns the index at `path` as numpy views of the memory map; errors as `read_table`. What the rows say is for `check_index`."""
    table, file = _open(path)
    return index_of(table, path, file)


def index_of(table: Any, path: Path, file: MappedFile | None = None) -> Index:
    """Returns an Arrow table of `SCHEMA` as numpy views, of `file`; raises DataError, naming `path`, where a value is missing."""
    for name in SCHEMA.names:
        if name != "confidences" and table.column(name).null_count:
            raise DataError(f"{path}: damaged: column {name} has {table.column(name).null_count} rows without a value")
    table = table.combine_chunks()
    column = {name: _only_chunk(table.column(name), SCHEMA.field(name).type) for name in SCHEMA.names}
    plain = {name: column[name].to_numpy() for name in ("shard", "offset", "size", "width", "height", "key_hash")}
    labels, confidences = column["labels"], column["confidences"]
    if labels.values.null_count or confidences.values.null_count:
        raise DataError(f"{path}: damaged: a label or a confidence has no value")
    return Index(
        **plain,
        label_starts=labels.offsets.to_numpy(),
        labels=labels.values.to_numpy(),
        confidences=confidences.values.to_numpy(),
        confidence_starts=confidences.offsets.to_numpy(),
        file=file,
    )


def _only_chunk(column: Any, kind: Any) -> Any:
    return column.chunk(0) if column.num_chunks else pa.array([], type=kind)
