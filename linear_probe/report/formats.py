"""Grids as Markdown and LaTeX, and cells as CSV. What comes from outside is escaped: it can neither break a table nor become markup."""

import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ..failures import Failure
from .grid import Entry, Grid, Head, Note, warnings
from .tables import Cell, Table

_CSV_FACTS = (
    "status", "model", "weights", "dataset", "protocol", "subset", "selected_on", "metric", "value", "standard_error", "low", "high",
    "top1", "top1_standard_error", "mean_per_class", "mean_per_class_standard_error", "relative_gap", "chosen", "num_classes", "num_train",
    "num_val", "num_test", "seed", "num_rows", "precision", "preprocessing", "protocol_hash", "data_hash", "date", "warnings", "reason",
)  # fmt: skip

_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "[": "{[}", "]": "{]}",
    "±": r"$\pm$", "–": "--", "°": r"$^\circ$", "λ": r"$\lambda$", "≤": r"$\le$", "≥": r"$\ge$", "×": r"$\times$", "√": r"$\surd$",
    "…": r"\dots{}", "’": "'", "“": "``", "”": "''", '"': "''",
}  # fmt: skip


def markdown(grids: Iterable[Grid]) -> str:
    """Returns grids as GitHub's Markdown, each with its title in bold and its notes below."""
    return "\n\n".join(_markdown(grid) for grid in grids) + "\n"


def latex(grids: Iterable[Grid]) -> str:
    r"""Returns grids as LaTeX floats for \usepackage{booktabs}; whether many sets want \small or a landscape page, the document decides."""
    return "% needs \\usepackage{booktabs}\n" + "\n".join(_latex(grid) for grid in grids)


def comma_separated(tables: Iterable[Table]) -> str:
    """Returns one line per cell, failed ones among them, with every fact of its row; the fractions are in [0, 1].

    Stages of `seconds` and packages of `versions` have columns of their own. A missing fact is empty.
    """
    facts = [fact for table in tables for fact in _facts(table)]
    more = sorted({name for fact in facts for name in fact if name.startswith(("seconds_", "version_"))})
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [*_CSV_FACTS, *more], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(facts)
    return buffer.getvalue()


def escape_markdown(text: str) -> str:
    """Returns text that Markdown shows as it stands, on one line; underscores inside words mean nothing there and stay."""
    flat = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    flat = re.sub(r"([\\`*\[\]|~$])", r"\\\1", flat)
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", flat)


def escape_latex(text: str) -> str:
    """Returns text that LaTeX sets as it stands, on one line; a letter that its Latin fonts lack becomes its code point."""
    flat = " ".join(text.split())
    return "".join(_LATEX.get(letter) or _latin(letter) for letter in flat)


def _markdown(grid: Grid) -> str:
    heads = [escape_markdown(head.name) + (f" ({escape_markdown(head.below)})" if head.below else "") for head in grid.heads]
    rule = ["---:" if head.is_number else "---" for head in grid.heads]
    body = [[_markdown_entry(entry) for entry in line] for line in grid.lines]
    table = "\n".join("| " + " | ".join(line) + " |" for line in (heads, rule, *body))
    notes = "\n".join(f"- {_marked(note, escape_markdown(note.text))}" for note in grid.notes)
    return f"**{escape_markdown(grid.title)}**\n\n{table}" + (f"\n\n{notes}" if notes else "")


def _marked(note: Note, text: str) -> str:
    return f"⚠ {text}" if note.kind == "alert" else text


def _markdown_entry(entry: Entry) -> str:
    text = escape_markdown(entry.text)
    shown = f"**{text}**" if entry.is_best else text
    return f"{shown} {escape_markdown(entry.after)}" if entry.after else shown


def _latex(grid: Grid) -> str:
    columns = "".join("r" if head.is_number else "l" for head in grid.heads)
    body = "\n".join(" & ".join(_latex_entry(entry) for entry in line) + r" \\" for line in grid.lines)
    notes = "\\par\n".join(escape_latex(("Note: " if note.kind == "alert" else "") + note.text) for note in grid.notes)
    return "\n".join([
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape_latex(grid.title)}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(_latex_head(head) for head in grid.heads) + r" \\",
        r"\midrule",
        *([body] if body else []),
        r"\bottomrule",
        r"\end{tabular}",
        *([rf"\par\medskip\raggedright\footnotesize {notes}"] if notes else []),
        r"\end{table}",
        "",
    ])  # fmt: skip


def _latex_head(head: Head) -> str:
    name = escape_latex(head.name)
    return rf"\shortstack{{{name}\\{{\scriptsize {escape_latex(head.below)}}}}}" if head.below else name


def _latex_entry(entry: Entry) -> str:
    text = escape_latex(entry.text)
    shown = rf"\textbf{{{text}}}" if entry.is_best else text
    return rf"{shown} {{\scriptsize {escape_latex(entry.after)}}}" if entry.after else shown


def _latin(letter: str) -> str:
    if ord(letter) < 0x180:
        return letter if letter.isprintable() else "?"
    plain = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
    return plain if plain.isalnum() else f"[U+{ord(letter):04X}]"


def _facts(table: Table) -> Iterator[dict[str, Any]]:
    for line in table.lines:
        for column in table.columns:
            if column in line.failures:
                yield _failed(line.weights, line.failures[column])
            elif column in line.cells:
                yield _measured(line.cells[column])


def _failed(weights: str, failure: Failure) -> dict[str, Any]:
    names = ("model", "dataset", "protocol", "subset", "date", "reason")
    return {"status": "failed", "weights": weights, **{name: " ".join(getattr(failure, name).split()) for name in names}}


def _measured(cell: Cell) -> dict[str, Any]:
    row, details = cell.row, cell.row.details
    same = ("model", "dataset", "protocol", "subset", "selected_on", "metric", "value", "standard_error", "seed", "precision")
    facts: dict[str, Any] = {"status": "measured", "weights": row.checkpoint_hash, "num_rows": len(cell.records)}
    facts |= {name: getattr(row, name) for name in (*same, "preprocessing", "protocol_hash", "data_hash", "date")}
    facts |= {name: details.get(name, "") for name in ("num_classes", "num_train", "num_val", "num_test")}
    for name, score in row.scores.items():
        if name in ("top1", "mean_per_class"):
            facts |= {name: score.get("value", ""), f"{name}_standard_error": score.get("standard_error", "")}
    low, high = _interval(row.scores.get(row.metric, {}))
    facts |= {"low": low, "high": high, "relative_gap": row.certificate.get("relative_gap", "")}
    chosen = json.dumps(details["chosen"], ensure_ascii=False) if details.get("chosen") else ""
    facts |= {"chosen": chosen, "warnings": "; ".join(warnings(cell))}
    facts |= {f"seconds_{_word(stage)}": seconds for stage, seconds in row.seconds.items()}
    return facts | {f"version_{_word(package)}": version for package, version in row.versions.items()}


def _interval(score: dict[str, Any]) -> Sequence[Any]:
    found = score.get("interval")
    return found if isinstance(found, list | tuple) and len(found) == 2 else ("", "")


def _word(text: str) -> str:
    return re.sub(r"\W+", "_", text)
