"""`results.jsonl`: one JSON row per evaluation, only ever appended to. Tables and plots are made from these rows."""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

FILE_NAME = "results.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResultRow:
    """One evaluation. Every other fact about it (λ, validation, paths, …) stands in `details`."""

    model: str
    """Display name of the backbone."""

    checkpoint_hash: str
    dataset: str
    data_hash: str
    protocol: str
    protocol_hash: str
    precision: str
    preprocessing: str
    """Digest of the image preprocessing."""

    seed: int
    metric: str
    """"top1" or "mean_per_class": the set's convention, which `value` is."""

    value: float
    """In [0, 1]."""

    standard_error: float
    scores: dict[str, dict[str, Any]]
    """Both metrics with standard error and 95 % interval."""

    certificate: dict[str, Any]
    seconds: dict[str, float]
    versions: dict[str, str]
    date: str
    """UTC, ISO 8601."""

    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    subset: str = "100p"
    """The share of the training rows that was used: a percentage or a number of shots."""

    selected_on: str = "validation"
    """"validation", "test" or "nothing": the rows on which hyper-parameters were chosen."""

    validation: str = ""
    """Digest of the numbers of the training rows that are the set's official validation part, where that selected; else empty."""

    @property
    def identity(self) -> tuple[str | int, ...]:
        """What makes two rows the same evaluation: equal identity, equal number. An official validation part counts where there is one."""
        data, how = (self.checkpoint_hash, self.data_hash), (self.protocol_hash, self.precision, self.preprocessing, self.seed, self.metric)
        return *data, *how, self.subset, *((self.validation,) if self.validation else ())

    @property
    def cell(self) -> tuple[str, str, str, str]:
        """The cell of the table that the row fills: model, dataset, protocol, subset."""
        return self.model, self.dataset, self.protocol, self.subset


@dataclasses.dataclass(frozen=True)
class Ledger:
    """What a results file holds: its rows in order, and the lines that are none, as `FILE:LINE: reason`."""

    rows: tuple[ResultRow, ...]
    damaged: tuple[str, ...]


def append_row(path: Path, row: ResultRow) -> None:
    """Appends a row, as `append_line`."""
    append_line(path, dataclasses.asdict(row))


def append_line(path: Path, tree: dict[str, Any]) -> None:
    """Appends one JSON object: one write under a lock, fsynced; a torn line left by a crash before is closed first.

    Raises:
        OSError: (disk full, read-only, …) with the file as it was.
    """
    line = json.dumps(tree, ensure_ascii=False, allow_nan=True).encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        with _locked(descriptor):
            size = os.fstat(descriptor).st_size
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            _write_whole(descriptor, (b"\n" if torn else b"") + line, size, path)
    finally:
        os.close(descriptor)


def read_rows(path: Path) -> Ledger:
    """Returns all rows of a results file; a missing file has none. A torn or foreign line is reported, not an error."""
    rows, damaged = [], []
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                rows.append(parse_row(line))
            except (ValueError, TypeError, UnicodeDecodeError) as error:
                damaged.append(f"{path}:{number}: {error}")
    return Ledger(tuple(rows), tuple(damaged))


def latest(rows: Iterable[ResultRow]) -> dict[tuple[str, str, str, str], ResultRow]:
    """Returns the last row of each (model, dataset, protocol, subset) cell, cells in the order in which they first appear."""
    cells: dict[tuple[str, str, str, str], ResultRow] = {}
    for row in rows:
        cells[row.cell] = row
    return cells


def parse_row(text: bytes) -> ResultRow:
    """Returns the row of one JSON object; what a newer version wrote is kept in `details`.

    Raises:
        ValueError, TypeError: when it is none.
    """
    tree = json.loads(text)
    if not isinstance(tree, dict):
        raise TypeError(f"a {type(tree).__name__}, not a row")
    known = {field.name for field in dataclasses.fields(ResultRow)}
    later = {key: value for key, value in tree.items() if key not in known}
    row = ResultRow(**{key: value for key, value in tree.items() if key in known})
    return dataclasses.replace(row, details={**row.details, **later}) if later else row


def _write_whole(descriptor: int, data: bytes, size: int, path: Path) -> None:
    """Writes `data` at the end, or nothing: what a full disk let through is cut off again."""
    try:
        if os.write(descriptor, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, size)
        raise


@contextlib.contextmanager
def _locked(descriptor: int) -> Iterator[None]:
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
