"""The report as one HTML page that opens offline: nothing on it is fetched from anywhere, and all that is not ours is escaped."""

import datetime
import html
import string
from collections.abc import Sequence
from pathlib import Path

from . import charts
from .details import cell_details
from .grid import Entry, Grid, Head, measured
from .published import Level, PublishedRow, load
from .tables import TEN, Table

TEMPLATE = Path(__file__).with_name("page.html")

EXPLANATIONS = {
    "standard": (
        "Multinomial logistic regression on frozen features. Its λ comes from a grid relative to the scale of the features and is chosen "
        "on validation images, the set's own or a stratified part of the training images; the classifier is then fitted to both together, "
        "and tested once. The problem is convex, and the relative gap of a row bounds how far its solution is from the optimum."
    ),
    "clip": (
        "The logistic regression of the CLIP paper: λ from its grid of 96 steps, narrowed down on validation images, then fitted once more "
        "to training and validation images together and tested once. Here each λ is solved until its validation score is the optimum's to "
        "a row or two."
    ),
    "bamboo-2022": (
        "The benchmark that was released with Bamboo: the sum of ten segment means plus λ‖W‖, its own grid of λ, and of all λ and all "
        "steps the one that is best on the test images. It is here to compare with figures that were made this way."
    ),
    "knn": "The vote of the k nearest training images in the space of frozen features, k chosen on validation images. Nothing is trained.",
    "dino-linear": (
        "Linear heads trained side by side by SGD on cached features, one per learning rate, the best chosen on validation images, as DINO "
        "and its successors do."
    ),
}

_SELECTION = {
    "validation": '<span class="badge">selected on validation</span>',
    "test": '<span class="badge loud">selected on test</span>',
    "nothing": '<span class="badge">nothing selected</span>',
}


def page(tables: Sequence[Table], quoted: Grid | None, level: Level) -> str:
    """Returns tables, published figures and the account of every cell as one HTML document."""
    template = string.Template(TEMPLATE.read_text(encoding="utf-8"))
    return template.substitute(
        headline=_headline(tables),
        lead=_lead(tables),
        alarms=_alarms(tables),
        contents=_contents(tables, quoted),
        results="\n".join(_result(number, tables) for number in range(len(tables))),
        published=_published(tables, quoted, level),
        cells="\n".join(_cells(number, table) for number, table in enumerate(tables)),
        date=f"{datetime.datetime.now(datetime.UTC):%-d %B %Y, %H:%M} UTC",
    )


def grid_table(grid: Grid) -> str:
    """Returns a grid as a `<table>` whose heads sort it."""
    head = "".join(_head(part) for part in grid.heads)
    lines = [[_field(place, *pair) for place, pair in enumerate(zip(line, grid.heads, strict=True))] for line in grid.lines]
    body = "\n".join(f"<tr>{''.join(fields)}</tr>" for fields in lines)
    caption = f'<caption class="hidden">{html.escape(grid.title)}</caption>'
    dense = " dense" if len(grid.heads) > 8 else ""
    inside = f"{caption}<thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody>"
    return f'<div class="wide"><table class="sortable{dense}">{inside}</table></div>'


def _headline(tables: Sequence[Table]) -> str:
    num_models = len({(line.model, line.weights) for table in tables for line in table.lines})
    num_sets = len({column.dataset for table in tables for column in table.columns})
    return f"{_count(num_models, 'backbone')} on {_count(num_sets, 'set')}"


def _lead(tables: Sequence[Table]) -> str:
    rows = [cell.row for table in tables for cell in table.cells]
    protocols = list(dict.fromkeys(table.protocol for table in tables))
    under = f"under {'protocols' if len(protocols) > 1 else 'protocol'} {', '.join(protocols)}"
    said = f"{_count(len(rows), 'cell')} in {_count(len(tables), 'table')}, {under}"
    days = sorted({row.date[:10] for row in rows})
    when = f", measured {days[0]}" + (f" to {days[-1]}" if len(days) > 1 else "") if days else ""
    return html.escape(f"{said}{_unbroken(when)}. Percentages ± one standard error over the test images.")


def _alarms(tables: Sequence[Table]) -> str:
    """Returns cards about what nobody may overlook: failed cells, and figures chosen on the test images."""
    cards = []
    if num_failed := sum(len(table.failures) for table in tables):
        said = "The reasons stand below the tables; their backbones have no AVG."
        cards.append(f"<strong>{_count(num_failed, 'cell')} failed.</strong> {said}")
    if chosen := list(dict.fromkeys(table.protocol for table in tables if table.selected_on == "test")):
        names = html.escape(", ".join(chosen))
        said = "These figures are too high. Compare them only with figures chosen the same way."
        cards.append(f"<strong>Selected on test: {names}.</strong> {said}")
    return "".join(f'<div class="card alarm"><b aria-hidden="true">!</b><div>{card}</div></div>' for card in cards)


def _contents(tables: Sequence[Table], quoted: Grid | None) -> str:
    links = [(f"table-{number}", f"{table.protocol} · {table.subset}") for number, table in enumerate(tables)]
    links += [("published", "published figures")] if quoted else []
    links += [("cells", "cell by cell")]
    return "".join(f'<a href="#{place}">{html.escape(name)}</a>' for place, name in links)


def _result(number: int, tables: Sequence[Table]) -> str:
    table = tables[number]
    grid = measured(table)
    is_first = all(earlier.protocol != table.protocol for earlier in tables[:number])
    explained = html.escape(f"{EXPLANATIONS.get(table.protocol, '') if is_first else ''} {_subset(table.subset)}".strip())
    alerts = "".join(f"<li>{html.escape(note.text)}</li>" for note in grid.notes if note.kind == "alert")
    facts = "".join(f"<li>{html.escape(note.text)}</li>" for note in grid.notes if note.kind == "fact")
    return (
        f'<article class="card" id="table-{number}"><h3>{html.escape(table.protocol)} {_badges(table)}</h3>'
        f'<p class="soft">{explained}</p>{grid_table(grid)}'
        + (f'<ul class="alerts">{alerts}</ul>' if alerts else "")
        + (f'<ul class="facts">{facts}</ul>' if facts else "")
        + "</article>"
    )


def _badges(table: Table) -> str:
    return f'<span class="badge">{html.escape(table.subset)}</span> ' + _SELECTION.get(table.selected_on, "")


def _subset(subset: str) -> str:
    if subset == "100p":
        return "Trained on all training images."
    if (number := subset.removesuffix("shot")) != subset:
        return f"Trained on {number} images per class."
    return f"Trained on {subset.removesuffix('p')} % of the training images of every class." if subset.endswith("p") else ""


def _published(tables: Sequence[Table], quoted: Grid | None, level: Level) -> str:
    if quoted is None:
        return ""
    rows = [row for row in load().at(level).rows if row.chart]
    drawn = [_chart(table, rows) for table in tables if table.subset == "100p" and any(column.dataset in TEN for column in table.columns)]
    caveat = "".join(f"<p>{html.escape(note.text)}.</p>" for note in quoted.notes if note.kind == "alert")
    sources = "".join(f"<li>{html.escape(note.text)}</li>" for note in quoted.notes if note.kind == "fact")
    return (
        f'<h2 id="published">Beside published figures</h2>\n{caveat}\n{"".join(drawn)}\n'
        f'<div class="card"><h3>Published, under other protocols, %</h3>{grid_table(quoted)}<ul class="facts">{sources}</ul></div>'
    )


def _chart(table: Table, rows: Sequence[PublishedRow]) -> str:
    lines = table.lines[: charts.MAX_BARS]
    legend = "".join(f'<span><i class="s{number + 1}"></i>{html.escape(line.model)}</span>' for number, line in enumerate(lines))
    legend += "".join(
        f"<span>{charts.mark(number)}{html.escape(f'{row.model}, {row.data}, {row.protocol}')}</span>" for number, row in enumerate(rows)
    )
    left_out = len(table.lines) - len(lines)
    more = f'<p class="soft">The first {len(lines)} of {len(table.lines)} backbones.</p>' if left_out else ""
    return (
        f'<div class="card"><h3>{html.escape(table.protocol)} {_badges(table)}</h3>'
        f'<div class="legend">{legend}</div>{more}<div class="wide">{charts.comparison(table, rows)}</div></div>'
    )


def _cells(number: int, table: Table) -> str:
    inside = "\n".join(cell_details(cell) for cell in table.cells)
    failed = "".join(
        f'<div class="cell failed"><span class="set">{html.escape(failure.dataset)}</span>'
        f'<span class="who">{html.escape(failure.model)}</span>'
        f'<span class="number">failed</span><span class="why">{html.escape(failure.reason)}</span></div>'
        for failure in table.failures
    )
    return f'<section id="cells-{number}"><h3>{html.escape(table.protocol)} {_badges(table)}</h3>\n{inside}{failed}</section>'


def _head(head: Head) -> str:
    below = f"<small>{html.escape(_unbroken(head.below))}</small>" if head.below else ""
    kind = ' class="number"' if head.is_number else ""
    return f'<th scope="col" aria-sort="none"{kind}><button type="button">{html.escape(head.name)}{below}</button></th>'


def _field(place: int, entry: Entry, head: Head) -> str:
    after = f' <span class="error">{html.escape(entry.after)}</span>' if entry.after else ""
    text = f"<b>{html.escape(entry.text)}</b>" if entry.is_best else html.escape(entry.text)
    if place == 0:
        return f'<th scope="row">{text}</th>'
    classes = " ".join([*(["number"] if head.is_number else []), *([entry.kind] if entry.kind in ("missing", "failed") else [])])
    kinds = f' class="{classes}"' if classes else ""
    sort = "" if entry.number is None else f' data-sort="{entry.number:.6f}"'
    shown = f"<code>{text}</code>" if head.name == "weights" else text
    return f"<td{kinds}{sort}>{shown}{after}</td>"


def _unbroken(text: str) -> str:
    """Returns text that no line ends after a hyphen or after "of" in."""
    return text.replace("-", "\N{NON-BREAKING HYPHEN}").replace("of ", "of\N{NO-BREAK SPACE}")


def _count(number: int, name: str) -> str:
    return f"{number:,} {name}" + ("" if number == 1 else "s")
