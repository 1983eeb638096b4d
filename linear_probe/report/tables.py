"""The tables of a report as data: the rows of results.jsonl, sorted into cells, lines and one table per protocol and subset.

Numbers of different protocols, of different shares of the training set, or chosen on different images do not compare, so they never share
a table. A line is one backbone, by name and weights; of each cell the last row counts.
"""

import dataclasses
import datetime
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..failures import Failure
from ..results import ResultRow

TEN = ("cifar10", "cifar100", "food", "pet", "flower", "sun", "car", "dtd", "caltech", "aircraft")
"""The ten sets whose mean is published."""

_SETS = (*TEN, "imagenet")
_PROTOCOLS = ("standard", "clip", "bamboo-2022", "knn", "dino-linear")


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """A row and the folder of the results file that it was read from."""

    row: ResultRow
    home: Path | None = None

    @property
    def folder(self) -> Path | None:
        """The folder with what the evaluation left behind, where that is known."""
        name = self.row.details.get("folder")
        return self.home / str(name) if self.home is not None and name else None


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """All rows of one backbone on one set in one table, the oldest first; rows of the same second as they were written."""

    records: tuple[Record, ...]

    @property
    def record(self) -> Record:
        """The last one, which is shown."""
        return self.records[-1]

    @property
    def row(self) -> ResultRow:
        """The last row, which is shown."""
        return self.records[-1].row


@dataclasses.dataclass(frozen=True)
class Column:
    """A set by one metric."""

    dataset: str
    metric: str
    """As in the rows; empty where every cell of the column failed."""


@dataclasses.dataclass(frozen=True)
class Average:
    """The unweighted mean over the averaged columns of a table, in [0, 1]; None where a cell is missing."""

    value: float | None
    standard_error: float | None
    """√(Σ se²) / n, for the test images of different sets are independent."""

    present: int
    wanted: int


@dataclasses.dataclass(frozen=True, eq=False)
class Line:
    """One backbone."""

    model: str
    weights: str
    """Hash of the weights; empty where every cell failed."""

    cells: dict[Column, Cell]
    failures: dict[Column, Failure]


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """The results under one protocol, with one subset of the training images, chosen on the same kind of images."""

    protocol: str
    subset: str
    selected_on: str
    """"validation", "test" or "nothing"; empty where every cell failed."""

    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    repeats: tuple[Failure, ...] = ()
    """Failed attempts at cells that have an older row: the row stands."""

    @property
    def averaged(self) -> tuple[Column, ...]:
        """The columns that AVG is taken over: those of the ten sets; where there are none, all."""
        return tuple(column for column in self.columns if column.dataset in TEN) or self.columns

    @property
    def cells(self) -> list[Cell]:
        """All cells, line by line, columns in order."""
        return [line.cells[column] for line in self.lines for column in self.columns if column in line.cells]

    @property
    def failures(self) -> list[Failure]:
        """All failed cells, line by line."""
        return [line.failures[column] for line in self.lines for column in self.columns if column in line.failures]

    def average(self, line: Line) -> Average:
        """Returns the mean of a line's averaged cells; without a value unless all of them are there."""
        rows = [line.cells[column].row for column in self.averaged if column in line.cells and column not in line.failures]
        present, wanted = len(rows), len(self.averaged)
        if present < wanted or not wanted:
            return Average(None, None, present, wanted)
        error = math.sqrt(sum(row.standard_error**2 for row in rows)) / wanted
        return Average(sum(row.value for row in rows) / wanted, error, present, wanted)


def build(records: Iterable[Record], failures: Iterable[Failure] = ()) -> list[Table]:
    """Returns the tables: protocols in the suite's order, larger subsets first; sets in the suite's order, models as they first appear.

    A failure counts until its cell has a row. One that is later than the row is kept as a remark: the row is still true.
    """
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.row.protocol, record.row.subset, record.row.selected_on), []).append(record)
    pending, repeats = _unresolved([record for group in groups.values() for record in group], failures)
    for failure in pending:
        if not any(key[:2] == (failure.protocol, failure.subset) for key in groups):
            groups[failure.protocol, failure.subset, ""] = []
    tables, claimed = [], set()
    for key in sorted(groups, key=lambda key: (_place(_PROTOCOLS, key[0]), _subset_place(key[1]), key[2])):
        mine = [] if key[:2] in claimed else [failure for failure in pending if (failure.protocol, failure.subset) == key[:2]]
        later = [] if key[:2] in claimed else [failure for failure in repeats if (failure.protocol, failure.subset) == key[:2]]
        claimed.add(key[:2])
        tables.append(dataclasses.replace(_table(key, groups[key], mine), repeats=tuple(later)))
    return tables


def dataset_place(name: str) -> tuple[int, str]:
    """Returns the key that sorts sets: the ten, ImageNet, then all others by name."""
    return _place(_SETS, name)


def _unresolved(records: Sequence[Record], failures: Iterable[Failure]) -> tuple[list[Failure], list[Failure]]:
    """Returns the last failure of each cell without a row, and of each cell whose rows are all older than it."""
    last: dict[tuple[str, str, str, str, str], Failure] = {}
    for failure in failures:
        last[failure.model, failure.checkpoint, failure.dataset, failure.protocol, failure.subset] = failure
    pending, repeats = [], []
    for failure in last.values():
        cell = (failure.dataset, failure.protocol, failure.subset)
        dates = [_moment(record.row.date) for record in records if record.row.cell[1:] == cell and _is_of(record.row, failure)]
        if not dates:
            pending.append(failure)
        elif max(dates) < _moment(failure.date):
            repeats.append(failure)
    return pending, repeats


def _is_of(row: ResultRow, failure: Failure) -> bool:
    """Whether a row is of the model that failed: by the user's label, or, where there is none, by the checkpoint it was opened from."""
    if failure.model != failure.checkpoint:
        return row.model == failure.model
    return bool(row.details.get("checkpoint", row.model) == failure.checkpoint)


def _table(key: tuple[str, str, str], records: Sequence[Record], failures: Sequence[Failure]) -> Table:
    measured = {Column(record.row.dataset, record.row.metric) for record in records}
    by_set = {column.dataset: column for column in sorted(measured, key=lambda column: column.metric, reverse=True)}
    by_set |= {failure.dataset: Column(failure.dataset, "") for failure in failures if failure.dataset not in by_set}
    columns = sorted(measured | set(by_set.values()), key=lambda column: (dataset_place(column.dataset), column.metric))
    lines: dict[tuple[str, str], Line] = {}
    for record in records:
        row = record.row
        line = lines.setdefault((row.model, row.checkpoint_hash), Line(row.model, row.checkpoint_hash, {}, {}))
        column = Column(row.dataset, row.metric)
        before = line.cells[column].records if column in line.cells else ()
        line.cells[column] = Cell(tuple(sorted((*before, record), key=lambda record: _moment(record.row.date))))
    for failure in failures:
        own = [line for line in lines.values() if any(_is_of(cell.row, failure) for cell in line.cells.values())]
        line = own[-1] if own else lines.setdefault((failure.model, ""), Line(failure.model, "", {}, {}))
        line.failures[by_set[failure.dataset]] = failure
    return Table(*key, columns=tuple(columns), lines=tuple(lines.values()))


def _place(order: Sequence[str], name: str) -> tuple[int, str]:
    return (order.index(name), "") if name in order else (len(order), name)


def _subset_place(subset: str) -> tuple[int, float, str]:
    """Returns the key that sorts subsets: percentages, then shots, falling; then whatever else there is."""
    for kind, unit in enumerate(("p", "shot")):
        number = subset.removesuffix(unit)
        if number != subset and number.replace(".", "", 1).isdecimal():
            return kind, -float(number), ""
    return 2, 0.0, subset


def _moment(date: Any) -> datetime.datetime:
    """Returns the time that an ISO 8601 text means, in UTC where it names no zone; what is no date is before all dates."""
    try:
        moment = datetime.datetime.fromisoformat(str(date))
    except ValueError:
        return datetime.datetime.min.replace(tzinfo=datetime.UTC)
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
