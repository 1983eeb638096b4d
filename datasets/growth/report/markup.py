"""Pieces of HTML; whatever is a `str` argument is escaped, unless it is said to be HTML."""

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

MISSING = "–"


def told(value: object) -> str:
    """Returns a value of a card as text: numbers with four digits, thousands set apart; – where there is none."""
    if value is None or value == "":
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def share(part: float, whole: float) -> str:
    """Returns a share in per cent with a digit: 12.3 %."""
    return f"{100 * part / whole:.1f} %" if whole else MISSING


def definitions(pairs: Mapping[str, Any], kind: str = "") -> str:
    """Returns names and values as a definition list of the CSS class `kind`."""
    lines = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(told(value))}</dd>" for name, value in pairs.items())
    return f'<dl class="{kind}">{lines}</dl>' if kind else f"<dl>{lines}</dl>"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, num_texts: int = 1) -> str:
    """Returns a table.

    Args:
        rows: cells as HTML, the first of each the row's own head.
        num_texts: columns from the left that are text; the others are numbers.
    """
    kinds = ["" if place < num_texts else ' class="number"' for place in range(len(heads))]
    head = "".join(f'<th scope="col"{kind}>{html.escape(name)}</th>' for name, kind in zip(heads, kinds, strict=True))
    lines = []
    for first, *others in rows:
        cells = "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(others, kinds[1:], strict=True))
        lines.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    return wide(f"<table><thead><tr>{head}</tr></thead><tbody>\n" + "\n".join(lines) + "\n</tbody></table>")


def wide(inside: str) -> str:
    """Returns HTML that scrolls sideways where the screen is too narrow for it."""
    return f'<div class="wide">{inside}</div>'


def card(title: str, inside: str, note: str = "") -> str:
    """Returns a card around HTML, with a title and a note below it where they are given."""
    head = f"<h3>{html.escape(title)}</h3>" if title else ""
    return f'<div class="card">{head}{soft(note) if note else ""}{inside}</div>'


def soft(text: str) -> str:
    """Returns a remark."""
    return f'<p class="soft">{html.escape(text)}</p>'


def legend(names: Mapping[str, str]) -> str:
    """Returns what the colours stand for, by role."""
    inside = "".join(f'<span><i class="{role}"></i>{html.escape(name)}</span>' for role, name in names.items())
    return f'<div class="legend">{inside}</div>'
