"""Published figures: what `published.yaml` holds, and the grid that is shown below the measured tables, never among them."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import yaml

from .grid import DASH, Entry, Grid, Head, Note
from .tables import TEN, Table

FILE = Path(__file__).with_name("published.yaml")

Level = Literal["seen", "all", "none"]

_TITLE = "published, under other protocols, %"
_CAVEAT = (
    "Quoted, not measured here, and not to be ranked with what was: checkpoints, splits and protocols differ, and the protocol alone moves "
    "a figure by several points"
)


@dataclasses.dataclass(frozen=True)
class Source:
    """Where figures were published."""

    title: str
    year: int
    link: str
    """A citation as plain text."""


@dataclasses.dataclass(frozen=True)
class Number:
    """One published figure."""

    value: float
    """In percent, with the decimals of its source."""

    source: str
    """Key of the source."""

    recalled: bool
    """Quoted from memory, not read at the source."""


@dataclasses.dataclass(frozen=True)
class PublishedRow:
    """A backbone under the protocol of those who published it, on all training images."""

    model: str
    data: str
    """What it was pretrained on; empty where that is not recorded."""

    protocol: str
    selected_on: str
    numbers: Mapping[str, Number]
    """By set."""

    chart: bool
    """Whether charts show it."""


@dataclasses.dataclass(frozen=True)
class Published:
    """Everything in the file."""

    sources: Mapping[str, Source]
    rows: tuple[PublishedRow, ...]

    def at(self, level: Level) -> "Published":
        """Returns the rows with at least one figure that `level` lets through, without the others."""
        rows = []
        for row in self.rows if level != "none" else ():
            numbers = {name: number for name, number in row.numbers.items() if level == "all" or not number.recalled}
            if numbers:
                rows.append(dataclasses.replace(row, numbers=numbers))
        return Published(self.sources, tuple(rows))


@functools.cache
def load(file: Path = FILE) -> Published:
    """Returns the published figures of a file.

    Raises:
        ValueError: for a figure without a known source, one given twice, or a set that is none of the ten.
    """
    tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    sources = {key: Source(**source) for key, source in tree["sources"].items()}
    rows = []
    for entry in tree["rows"]:
        numbers: dict[str, Number] = {}
        for group in entry["numbers"]:
            if group["source"] not in sources:
                raise ValueError(f"{file}: {entry['model']}: unknown source {group['source']!r}")
            for name, value in group["values"].items():
                if name not in TEN or name in numbers:
                    raise ValueError(f"{file}: {entry['model']}: {name} is given twice or is none of the ten sets")
                numbers[name] = Number(float(value), group["source"], bool(group["recalled"]))
        facts = {key: entry[key] for key in ("model", "data", "protocol", "selected_on")}
        rows.append(PublishedRow(**facts, numbers=numbers, chart=entry.get("chart", False)))
    return Published(sources, tuple(rows))


def beside(tables: Iterable[Table], level: Level) -> Grid | None:
    """Returns the published figures on the sets that were measured on all training images; None where there are none.

    The mean is shown only beside all ten sets, and only for rows that have all ten.
    """
    measured = {column.dataset for table in tables if table.subset == "100p" for column in table.columns}
    names = [name for name in TEN if name in measured]
    shown = load().at(level)
    rows = [row for row in shown.rows if any(name in row.numbers for name in names)]
    if not rows:
        return None
    used = list(dict.fromkeys(row.numbers[name].source for row in rows for name in names if name in row.numbers))
    marks = {key: f"[{place}]" for place, key in enumerate(used, 1)}
    with_mean = len(names) == len(TEN)
    heads = [*(Head(name, is_number=False) for name in ("model", "pretrained on", "protocol")), *(Head(name) for name in names)]
    heads += [*([Head("AVG", f"of {len(TEN)}")] if with_mean else []), Head("source", is_number=False)]
    lines = tuple(_line(row, names, marks, with_mean=with_mean) for row in rows)
    notes = [Note("alert", _CAVEAT)]
    if any(row.numbers[name].recalled for row in rows for name in names if name in row.numbers):
        notes.append(Note("alert", "°: quoted from memory and not checked at the source"))
    notes += [Note("fact", f"{marks[key]} {source.title}, {source.year}, {source.link}") for key in used for source in [shown.sources[key]]]
    return Grid(_TITLE, tuple(heads), lines, tuple(notes))


def _line(row: PublishedRow, names: list[str], marks: Mapping[str, str], *, with_mean: bool) -> tuple[Entry, ...]:
    numbers = [row.numbers.get(name) for name in names]
    chosen = {"test": ", SELECTED ON TEST", "validation": ", on validation"}.get(row.selected_on, "")
    entries = [Entry(row.model), Entry(row.data or DASH), Entry(row.protocol + chosen)]
    entries += [_entry(number) for number in numbers]
    if with_mean:
        entries.append(_mean([number for number in numbers if number is not None]))
    sources = " ".join(dict.fromkeys(marks[number.source] for number in numbers if number is not None))
    return (*entries, Entry(sources))


def _entry(number: Number | None) -> Entry:
    if number is None:
        return Entry(DASH, kind="missing")
    return Entry(str(number.value) + ("°" if number.recalled else ""), kind="number", number=number.value / 100)


def _mean(numbers: list[Number]) -> Entry:
    if len(numbers) < len(TEN):
        return Entry(DASH, f"({len(numbers)} of {len(TEN)})", "missing")
    mean = sum(number.value for number in numbers) / len(numbers)
    return Entry(f"{mean:.2f}" + ("°" if any(number.recalled for number in numbers) else ""), kind="number", number=mean / 100)
