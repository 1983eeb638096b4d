"""The report's account of one cell, as HTML: its figures, curve, classes, confusions and hashes. Everything from outside is escaped."""

import html
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..results import ResultRow
from . import charts
from .evidence import ClassScore, Confusion, Evidence, read_evidence
from .grid import METRIC_NAMES, percent, warnings
from .tables import Cell

_FEW_CLASSES = 16
_WORST, _BEST, _PAIRS = 10, 5, 12


def cell_details(cell: Cell) -> str:
    """Returns a cell as a `<details>` element that opens on a click; what its folder lacks is said in words."""
    row, evidence = cell.row, read_evidence(cell.record.folder)
    remarks = [*(f"warning: {text}" for text in warnings(cell)), *evidence.notes]
    sign = '<span class="flag" title="has warnings">⚠</span>' if warnings(cell) else ""
    interval = row.scores.get(row.metric, {}).get("interval") or (row.value, row.value)
    drawn = charts.bar(row.value, (float(interval[0]), float(interval[1])), f"{percent(row.value)} %")
    summary = (
        f'<summary><span class="set">{html.escape(row.dataset)}</span><span class="who">{html.escape(row.model)}{sign}</span>'
        f'<span class="number">{percent(row.value)} <span class="error">± {percent(row.standard_error)}</span></span>{drawn}</summary>'
    )
    parts = ['<div class="two">', f"<section>{definitions(_figures(row))}{_variants(row)}</section>", _curve(row, evidence), "</div>"]
    parts += [_classes(evidence.classes), _confusions(evidence.confusions), _earlier(cell)]
    if remarks:
        parts.append('<ul class="alerts">' + "".join(f"<li>{html.escape(text)}</li>" for text in remarks) + "</ul>")
    parts.append(f'<section><h4>What it was made from</h4><div class="hashes">{definitions(_origins(row))}</div>{_notes(row)}</section>')
    return f'<details class="cell">{summary}<div class="inside">{"".join(parts)}</div></details>'


def definitions(pairs: Mapping[str, str]) -> str:
    """Returns names and values as a definition list."""
    return "<dl>" + "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in pairs.items()) + "</dl>"


def table(heads: Iterable[tuple[str, bool]], lines: Iterable[Sequence[str]]) -> str:
    """Returns a plain table of (name, is number) heads and lines of HTML."""
    kinds = list(heads)
    head = "".join(f'<th scope="col"{_number(is_number)}>{html.escape(name)}</th>' for name, is_number in kinds)
    body = "".join(
        "<tr>" + "".join(f"<td{_number(is_number)}>{text}</td>" for text, (_, is_number) in zip(line, kinds, strict=True)) + "</tr>"
        for line in lines
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _number(is_number: bool) -> str:
    return ' class="number"' if is_number else ""


def _figures(row: ResultRow) -> dict[str, str]:
    found = {METRIC_NAMES.get(name, name): _score(score) for name, score in row.scores.items()}
    details = row.details
    chosen = details.get("chosen")
    if isinstance(chosen, Mapping) and chosen:
        found["chosen"] = ", ".join(f"{name} = {_short(value)}" for name, value in chosen.items())
    gap = row.certificate.get("relative_gap")
    if isinstance(gap, int | float):
        found["relative gap"] = "no bound" if not math.isfinite(gap) else f"≤ {gap:.1e}"
    counts = {"train": "num_train", "validation": "num_val", "test": "num_test"}
    images = [f"{details[key]:,} {name}" for name, key in counts.items() if isinstance(details.get(key), int)]
    if images:
        found["images"] = ", ".join(images)
    more = (("classes", "num_classes"), ("features", "num_features"), ("image side", "image_size"), ("layout", "layout"))
    found |= {name: str(details[key]) for name, key in more if key in details}
    if row.seconds:
        found["seconds"] = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in row.seconds.items())
    return found


def _origins(row: ResultRow) -> dict[str, str]:
    found = {"weights": row.checkpoint_hash, "data": row.data_hash, "protocol": f"{row.protocol}, {row.protocol_hash}"}
    found |= {"preprocessing": row.preprocessing, "forward pass": row.precision, "seed": str(row.seed), "date": row.date}
    return found | {"versions": ", ".join(f"{name} {version}" for name, version in row.versions.items())}


def _notes(row: ResultRow) -> str:
    """Returns what was noted of the set's files when they were opened."""
    found = row.details.get("notes")
    texts = [str(text) for text in found] if isinstance(found, list) else []
    return '<ul class="facts">' + "".join(f"<li>{html.escape(text)}</li>" for text in texts) + "</ul>" if texts else ""


def _score(score: Any) -> str:
    if not isinstance(score, Mapping) or "value" not in score:
        return "not recorded"
    error = f" ± {percent(score['standard_error'])}" if "standard_error" in score else ""
    interval = score.get("interval")
    return f"{percent(score['value'])}{error} %" + (f", 95 % within {percent(interval[0])} to {percent(interval[1])}" if interval else "")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _variants(row: ResultRow) -> str:
    """Returns what the protocol found for its other values (each k of the nearest neighbours, say)."""
    variants = row.details.get("variants")
    if not isinstance(variants, Mapping) or not variants:
        return ""
    lines = [
        (html.escape(str(name)), percent(score["value"]), percent(score["standard_error"]) if "standard_error" in score else "")
        for name, scores in variants.items()
        if isinstance(scores, Mapping) and isinstance(score := scores.get(row.metric), Mapping) and "value" in score
    ]
    return f"<h4>All variants</h4>{table((('variant', False), ('%', True), ('±', True)), lines)}" if lines else ""


def _curve(row: ResultRow, evidence: Evidence) -> str:
    if evidence.curve is None:
        return ""
    keys = {"val": "test" if row.selected_on == "test" else "validation", "train": "training (top-1)", "chosen": "chosen"}
    if all(point.train_score is None for point in evidence.curve.points):
        del keys["train"]
    key = "".join(f'<span class="key {kind}">{name}</span>' for kind, name in keys.items())
    drawn = charts.curve(evidence.curve, METRIC_NAMES.get(row.metric, row.metric))
    return f'<section><h4>Choosing {html.escape(evidence.curve.x_label)}</h4><div class="legend">{key}</div>{drawn}</section>'


def _classes(classes: Sequence[ClassScore] | None) -> str:
    if not classes:
        return ""
    heading = f"<h4>Recall by class</h4>{_spread(classes)}"
    if len(classes) <= _FEW_CLASSES:
        return f"<section>{heading}{_class_table(classes)}</section>"
    worst = f"<section><h4>The {_WORST} worst</h4>{_class_table(classes[:_WORST])}</section>"
    best = f"<section><h4>The {_BEST} best</h4>{_class_table(list(reversed(classes[-_BEST:])))}</section>"
    return f'<section>{heading}<div class="wide">{charts.profile(classes)}</div></section><div class="two">{worst}{best}</div>'


def _spread(classes: Sequence[ClassScore]) -> str:
    perfect = sum(found.hits == found.count for found in classes)
    middle = statistics.median(found.share for found in classes)
    worst, best = classes[0], classes[-1]
    ends = f"from {100 * worst.share:.1f} % ({html.escape(worst.name)}) to {100 * best.share:.1f} % ({html.escape(best.name)})"
    return f'<p class="soft">{len(classes)} classes, {ends}; median {100 * middle:.1f} %; {perfect} without an error.</p>'


def _class_table(classes: Sequence[ClassScore]) -> str:
    lines = [
        (
            html.escape(found.name),
            f'{100 * found.share:.1f} <span class="error">{found.hits}/{found.count}</span>',
            charts.bar(found.share, found.interval, f"{found.name}: {100 * found.share:.1f} %"),
        )
        for found in classes
    ]
    return table((("class", False), ("%", True), ("0 to 100 %, 95 % interval", False)), lines)


def _confusions(confusions: Sequence[Confusion] | None) -> str:
    if confusions is None:
        return ""
    if not confusions:
        return '<section><h4>Confusions</h4><p class="soft">Not one test image was taken for another class.</p></section>'
    lines = [
        (html.escape(pair.label), html.escape(pair.prediction), f"{pair.count:,}", f"{100 * pair.count / pair.of:.1f}")
        for pair in confusions[:_PAIRS]
    ]
    heads = (("class", False), ("taken for", False), ("images", True), ("% of the class", True))
    total = sum(pair.count for pair in confusions)
    shown = sum(pair.count for pair in confusions[:_PAIRS])
    said = f'<p class="soft">{total:,} errors in {len(confusions):,} pairs; the {len(lines)} below hold {shown:,} of them.</p>'
    return f"<section><h4>Most frequent confusions</h4>{said}{table(heads, lines)}</section>"


def _earlier(cell: Cell) -> str:
    if len(cell.records) < 2:
        return ""
    lines = [
        (html.escape(record.row.date), str(record.row.seed), f"{percent(record.row.value)} ± {percent(record.row.standard_error)}")
        for record in reversed(cell.records)
    ]
    return f"<section><h4>All its rows, the newest first</h4>{table((('date', False), ('seed', True), ('%', True)), lines)}</section>"
