"""What a report's table shows, in words and figures: one grid of entries and its notes, from which every format is made."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

from .tables import Average, Cell, Column, Line, Table

DASH = "–"
METRIC_NAMES = {"top1": "top-1", "mean_per_class": "mean per class"}

_SELECTION = {
    "validation": "selected on validation",
    "test": "SELECTED ON TEST",
    "nothing": "nothing selected",
    "": "no result",
}
_TEST_SELECTED = (
    "SELECTED ON TEST: of several results the best on the test images is reported, so these figures are too high and compare only with "
    "figures chosen the same way"
)


@dataclasses.dataclass(frozen=True)
class Head:
    """The head of a column: its name and, smaller, what it counts."""

    name: str
    below: str = ""
    is_number: bool = True


@dataclasses.dataclass(frozen=True)
class Entry:
    """One field of a grid."""

    text: str
    after: str = ""
    """Smaller, behind the text: an error, or how many cells are there."""

    kind: Literal["text", "number", "missing", "failed"] = "text"
    number: float | None = None
    """What the field sorts by."""

    is_best: bool = False


@dataclasses.dataclass(frozen=True)
class Note:
    """A sentence below a grid."""

    kind: Literal["alert", "fact"]
    text: str


@dataclasses.dataclass(frozen=True)
class Grid:
    """A table as it is shown."""

    title: str
    heads: tuple[Head, ...]
    lines: tuple[tuple[Entry, ...], ...]
    notes: tuple[Note, ...]


def measured(table: Table) -> Grid:
    """Returns a table of results as a grid: model, weights, one column per set in percent, and AVG where there are two sets or more."""
    with_average = len(table.averaged) > 1
    averages = [table.average(line) for line in table.lines]
    best = {column: _best([line.cells[column].row.value for line in table.lines if _shows(line, column)]) for column in table.columns}
    best_average = _best([average.value for average in averages if average.value is not None])
    lines = []
    for line, average in zip(table.lines, averages, strict=True):
        entries = [Entry(line.model), Entry(line.weights[:8] or DASH)]
        entries += [_entry(line, column, best[column]) for column in table.columns]
        lines.append((*entries, _average_entry(average, best_average)) if with_average else tuple(entries))
    heads = [Head("model", is_number=False), Head("weights", is_number=False)]
    heads += [Head(column.dataset, METRIC_NAMES.get(column.metric, column.metric)) for column in table.columns]
    heads += [Head("AVG", f"of {len(table.averaged)}")] if with_average else []
    return Grid(title(table), tuple(heads), tuple(lines), tuple(notes(table)))


def title(table: Table) -> str:
    """Returns what a table's numbers are, in one line."""
    selection = _SELECTION.get(table.selected_on, f"selected on {table.selected_on}")
    return f"linear probe, protocol {table.protocol}, {table.subset}, {selection}, % ± standard error"


def percent(value: float) -> str:
    """Returns a share as a percentage of two decimals, without the sign."""
    return f"{100 * value:.2f}"


def figure(value: float, standard_error: float, *, is_best: bool = False) -> Entry:
    """Returns a share and its standard error as a field."""
    return Entry(percent(value), f"± {percent(standard_error)}", "number", value, is_best)


def warnings(cell: Cell) -> list[str]:
    """Returns what a cell's row says a reader should know."""
    found = cell.row.details.get("warnings")
    return [str(text) for text in found] if isinstance(found, list) else []


def notes(table: Table) -> Iterator[Note]:
    """Yields the notes of a table: first what casts doubt on its numbers, then what they are made of."""
    yield from (Note("alert", text) for text in _alerts(table))
    yield from (Note("fact", text) for text in _facts(table))


def _alerts(table: Table) -> Iterator[str]:
    if table.selected_on == "test":
        yield _TEST_SELECTED
    for failure in table.failures:
        yield f"failed: {failure.model} on {failure.dataset}: {failure.reason}"
    for failure in table.repeats:
        yield f"a later attempt failed ({failure.date}), the row before it is shown: {failure.model} on {failure.dataset}: {failure.reason}"
    for line in table.lines:
        if len({(cell.row.preprocessing, cell.row.precision) for cell in line.cells.values()}) > 1:
            yield f"{line.model}: its cells differ in image preprocessing or precision; they are not of one setting"
    if len(digests := _short(cell.row.protocol_hash for cell in table.cells)) > 1:
        yield f"{len(digests)} versions of protocol {table.protocol} ({', '.join(digests)}): only rows of the same version compare"
    for dataset, hashes in _data(table).items():
        if len(hashes) > 1:
            yield f"{dataset}: {len(hashes)} versions of the data ({', '.join(hashes)}): these numbers are not about the same images"
    for cell in table.cells:
        yield from (f"warning: {cell.row.model} on {cell.row.dataset}: {text}" for text in warnings(cell))


def _facts(table: Table) -> Iterator[str]:
    if len(table.averaged) > 1:
        names = " ".join(dict.fromkeys(column.dataset for column in table.averaged))
        said = "only where none of them is missing; its ± takes the errors as independent"
        yield f"AVG: unweighted mean of {len(table.averaged)} sets ({names}), {said}"
    if any(sum(_shows(line, column) for line in table.lines) > 1 for column in table.columns):
        yield "bold: the highest of its column, which is no test of whether it is ahead by more than chance"
    rows = [cell.row for cell in table.cells]
    if not rows:
        return
    yield f"protocol {table.protocol}: {', '.join(_short(row.protocol_hash for row in rows))}"
    yield "data: " + ", ".join(" ".join((dataset, *hashes)) for dataset, hashes in _data(table).items())
    seeds = sorted({row.seed for row in rows})
    precisions = ", ".join(sorted({row.precision for row in rows}))
    yield f"{_plural(seeds, 'seed')}: {', '.join(map(str, seeds))}; forward pass: {precisions}"
    repeated = [cell for cell in table.cells if len(cell.records) > 1]
    if repeated:
        yield f"evaluated more than once, the last row shown: {'; '.join(map(_repeated, repeated))}"


def _repeated(cell: Cell) -> str:
    seeds = sorted({record.row.seed for record in cell.records})
    return f"{cell.row.model} on {cell.row.dataset} ({len(cell.records)} rows, {_plural(seeds, 'seed')} {', '.join(map(str, seeds))})"


def _data(table: Table) -> dict[str, list[str]]:
    """Returns the hashes of each set's data, abbreviated."""
    rows = [cell.row for cell in table.cells]
    return {
        column.dataset: hashes
        for column in table.columns
        if (hashes := _short(row.data_hash for row in rows if row.dataset == column.dataset))
    }


def _short(hashes: Iterable[str]) -> list[str]:
    return [text[:8] for text in dict.fromkeys(hashes)]


def _plural(things: Sequence[object], name: str) -> str:
    return name if len(things) == 1 else f"{name}s"


def _shows(line: Line, column: Column) -> bool:
    return column in line.cells and column not in line.failures


def _entry(line: Line, column: Column, best: Callable[[float], bool]) -> Entry:
    if column in line.failures:
        return Entry("failed", kind="failed")
    if column not in line.cells:
        return Entry(DASH, kind="missing")
    row = line.cells[column].row
    return figure(row.value, row.standard_error, is_best=best(row.value))


def _average_entry(average: Average, best: Callable[[float], bool]) -> Entry:
    if average.value is None or average.standard_error is None:
        return Entry(DASH, f"({average.present} of {average.wanted})", "missing")
    return figure(average.value, average.standard_error, is_best=best(average.value))


def _best(values: Sequence[float]) -> Callable[[float], bool]:
    """Returns whether a value is the highest of several, as they are shown; one alone has nothing to be better than."""
    highest = percent(max(values)) if len(values) > 1 else None
    return lambda value: percent(value) == highest
