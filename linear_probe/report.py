"""The verb `report`: the table of all results rows.

    bamboo report runs/probe --out table.md

Results are results.jsonl files, or folders that are searched for them; several may be given. One table per protocol, since numbers
of different protocols do not compare; of each cell the last row counts.
"""

import html
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..cli.arguments import parse
from ..cli.config import settings
from ..cli.errors import UserError
from .results import FILE_NAME, ResultRow, latest, read_rows


@settings
class ReportSettings:
    """Everything `bamboo report` can be told."""

    results: list[Path]
    """Results files, or folders that hold them; also by position."""
    out: Path | None = None
    """Table to write, .md or .html; none: Markdown on standard output."""

    def problems(self) -> list[str]:
        """Returns what is wrong across fields."""
        wrong = [f"results={path}: no such file or folder" for path in self.results if not path.exists()]
        if not self.results:
            wrong.append("results: give at least one results file or folder")
        if self.out is not None and self.out.suffix not in (".md", ".html"):
            wrong.append(f"out={self.out}: must end in .md or .html")
        return wrong


SETTINGS = {"": ReportSettings}


def main(argv: Sequence[str]) -> int:
    """Runs `bamboo report` and returns its exit code."""
    config = parse(ReportSettings, _spelled_out(argv), prog="bamboo report", doc=__doc__ or "")
    rows = collect(config.results)
    if config.out is None:
        sys.stdout.write(markdown_table(rows))
        return 0
    from ..datasets.atomic import write_text

    write_text(config.out, html_page(rows) if config.out.suffix == ".html" else markdown_table(rows))
    sys.stdout.write(f"{config.out}: {len(latest(rows))} cells\n")
    return 0


def collect(paths: Iterable[Path]) -> list[ResultRow]:
    """Returns the rows of all results files in and below `paths`; damaged lines are listed on standard error.

    Raises:
        UserError: when there is no row at all.
    """
    rows: list[ResultRow] = []
    searched = list(paths)
    for path in searched:
        for file in sorted(path.rglob(FILE_NAME)) if path.is_dir() else [path]:
            ledger = read_rows(file)
            rows += ledger.rows
            sys.stderr.writelines(f"not a row: {line}\n" for line in ledger.damaged)
    if not rows:
        raise UserError(f"no results in {', '.join(map(str, searched))}; bamboo probe writes them")
    return rows


def markdown_table(rows: Iterable[ResultRow]) -> str:
    """Returns one Markdown table per protocol: models down, sets across, value ± standard error in percent."""
    parts = []
    for title, table in _tables(rows):
        head, *body = table
        lines = [head, ["---", *(["---:"] * (len(head) - 1))], *body]
        parts.append(f"**{title}**\n\n" + "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines))
    return "\n\n".join(parts) + "\n"


def html_table(rows: Iterable[ResultRow]) -> str:
    """Returns the same tables as HTML `<table>` elements, without a page around them."""
    parts = []
    for title, table in _tables(rows):
        head, *body = ([html.escape(cell) for cell in line] for line in table)
        header = "".join(f"<th>{cell}</th>" for cell in head)
        lines = "".join(f"<tr><th>{line[0]}</th>{''.join(f'<td>{cell}</td>' for cell in line[1:])}</tr>\n" for line in body)
        parts.append(f"<table>\n<caption>{html.escape(title)}</caption>\n<tr>{header}</tr>\n{lines}</table>")
    return "\n".join(parts) + "\n"


def html_page(rows: Iterable[ResultRow]) -> str:
    """Returns the tables as one page that opens offline."""
    style = "body{font:16px sans-serif;margin:2em}table{border-collapse:collapse;margin:1em 0}th,td{padding:.3em .8em;text-align:right}"
    style += "th:first-child,caption{text-align:left}tr{border-bottom:1px solid #ddd}caption{font-weight:bold;padding:.3em 0}"
    head = f'<meta charset="utf-8"><title>Bamboo results</title><style>{style}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{html_table(rows)}</body></html>\n'


def _tables(rows: Iterable[ResultRow]) -> list[tuple[str, list[list[str]]]]:
    """Returns (title, lines of cells, the header first) per protocol, models in the order in which they first appear."""
    cells = latest(rows)
    tables = []
    for protocol in dict.fromkeys(row.protocol for row in cells.values()):
        inside = [row for row in cells.values() if row.protocol == protocol]
        sets = {row.dataset: row.metric for row in inside}
        head = ["model", "weights", *(f"{name} ({'top-1' if metric == 'top1' else 'mean per class'})" for name, metric in sets.items())]
        body = []
        for model in dict.fromkeys(row.model for row in inside):
            found = {row.dataset: row for row in inside if row.model == model}
            body.append([model, _weights(found.values()), *(_cell(found.get(name)) for name in sets)])
        tables.append((f"linear probe, protocol {protocol}, % ± standard error", [head, *body]))
    return tables


def _cell(row: ResultRow | None) -> str:
    return "–" if row is None else f"{100 * row.value:.2f} ± {100 * row.standard_error:.2f}"


def _weights(rows: Iterable[ResultRow]) -> str:
    return ", ".join(dict.fromkeys(row.checkpoint_hash[:8] for row in rows))


def _spelled_out(argv: Sequence[str]) -> list[str]:
    """Returns the arguments with those before the first option gathered into `--results`."""
    count = next((at for at, argument in enumerate(argv) if argument.startswith("-")), len(argv))
    return [*(["--results", json.dumps(list(argv[:count]))] if count else []), *argv[count:]]
