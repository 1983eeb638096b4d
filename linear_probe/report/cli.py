"""The verb `report`: the tables of all results rows, and the page that explains them.

    bamboo report runs/probe --out report.html

Results are results.jsonl files, or folders that are searched for them; several may be given. One table per protocol and subset, since
others do not compare; of each cell the last row counts. A cell that failed (failures.jsonl) says so, and why.
"""

import dataclasses
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from ...cli.arguments import parse
from ...cli.config import settings
from ...cli.errors import UserError
from ..failures import FILE_NAME as FAILURES_NAME
from ..failures import Failure, read_failures
from ..results import FILE_NAME, read_rows
from .tables import Record, Table, build

_SUFFIXES = (".md", ".csv", ".tex", ".html")


@settings
class ReportSettings:
    """Everything `bamboo report` can be told."""

    results: list[Path]
    """Results files, or folders that hold them; also by position."""
    out: Path | None = None
    """File to write, .md, .csv, .tex or .html; none: Markdown on standard output."""
    published: Literal["seen", "all", "none"] = "seen"
    """Published figures below the tables: those checked at their source, also recalled ones, or none. A .csv has none."""

    def problems(self) -> list[str]:
        """Returns what is wrong across fields."""
        wrong = [f"results={path}: no such file or folder" for path in self.results if not path.exists()]
        if not self.results:
            wrong.append("results: give at least one results file or folder")
        if self.out is not None and self.out.suffix not in _SUFFIXES:
            wrong.append(f"out={self.out}: must end in {', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]}")
        return wrong


SETTINGS = {"": ReportSettings}


@dataclasses.dataclass(frozen=True, eq=False)
class Collected:
    """Everything that was found: rows with the folders they lie in, and failed cells."""

    records: tuple[Record, ...]
    failures: tuple[Failure, ...]


def main(argv: Sequence[str]) -> int:
    """Runs `bamboo report` and returns its exit code."""
    config = parse(ReportSettings, argv, prog="bamboo report", doc=__doc__ or "", positional=("results",))
    found = collect(config.results)
    tables = build(found.records, found.failures)
    text = render(tables, config.out.suffix if config.out is not None else ".md", published=config.published)
    if config.out is None:
        sys.stdout.write(text)
        return 0
    from ...datasets.atomic import write_text

    write_text(config.out, text)
    num_failed = sum(len(table.failures) for table in tables)
    failed = f", {num_failed} failed" if num_failed else ""
    sys.stdout.write(f"{config.out}: {sum(len(table.cells) for table in tables)} cells, {len(tables)} tables{failed}\n")
    return 0


def collect(paths: Iterable[Path]) -> Collected:
    """Returns the rows and failed cells of all results files in and below `paths`; damaged lines are listed on standard error.

    A file found twice counts once. Beside a results file that is named itself, its failures.jsonl is read too.

    Raises:
        UserError: when there is neither a row nor a failure.
    """
    records: list[Record] = []
    failures: list[Failure] = []
    searched = list(paths)
    for home, file in _found(searched):
        ledger = read_rows(file)
        records += [Record(row, home) for row in ledger.rows]
        failures += read_failures(home)
        sys.stderr.writelines(f"not a row: {line}\n" for line in ledger.damaged)
    if not records and not failures:
        raise UserError(f"no results in {', '.join(map(str, searched))}; bamboo probe writes them")
    return Collected(tuple(records), tuple(failures))


def render(tables: Sequence[Table], suffix: str, *, published: Literal["seen", "all", "none"] = "seen") -> str:
    """Returns tables in the format of a file's suffix, published figures below them."""
    from . import formats
    from .grid import measured
    from .published import beside

    if suffix == ".csv":
        return formats.comma_separated(tables)
    quoted = beside(tables, published)
    if suffix == ".html":
        from .page import page

        return page(tables, quoted, published)
    grids = [*map(measured, tables), *([quoted] if quoted else [])]
    return formats.latex(grids) if suffix == ".tex" else formats.markdown(grids)


def markdown_tables(found: Collected) -> str:
    """Returns all that was found as Markdown tables, without published figures."""
    return render(build(found.records, found.failures), ".md", published="none")


def _found(paths: Iterable[Path]) -> list[tuple[Path, Path]]:
    """Returns (folder, results file) of everything in and below `paths`; the file may be missing where only failures lie."""
    found: dict[Path, tuple[Path, Path]] = {}
    for path in paths:
        files = [path]
        if path.is_dir():
            homes = {file.parent for name in (FILE_NAME, FAILURES_NAME) for file in path.rglob(name)}
            files = [home / FILE_NAME for home in sorted(homes)]
        for file in files:
            found.setdefault(file.resolve(), (file.parent, file))
    return list(found.values())
