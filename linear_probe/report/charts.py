"""Drawings of the report as inline SVG: no font, script or file from elsewhere; colours are the page's, so that they follow its theme."""

import html
import math
from collections.abc import Iterable, Iterator, Sequence

from .evidence import ClassScore, Curve, Point
from .grid import percent
from .published import PublishedRow
from .tables import TEN, Table

MAX_BARS = 6
"""Backbones that one chart shows; more cannot be told apart."""

_MINUS, _DIGITS = "⁻", "⁰¹²³⁴⁵⁶⁷⁸⁹"
_MARKS = ("M0-5L5 0L0 5L-5 0z", "M-4-4H4V4H-4z", "M0-5L5 4H-5z", "M0 5L5-4H-5z", "M-5 0A5 5 0 1 0 5 0A5 5 0 1 0-5 0z")


def bar(value: float, interval: tuple[float, float], label: str) -> str:
    """Returns a bar of length `value` in [0, 1], with a whisker over `interval`; it fills the width it is given."""
    low, high = (1000 * end for end in interval)
    whisker = f"M{low:.1f} 10H{high:.1f}M{low:.1f} 6V14M{high:.1f} 6V14"
    return (
        f'<svg class="bar" viewBox="0 0 1000 20" preserveAspectRatio="none" role="img" aria-label="{html.escape(label)}">'
        f'<rect class="track" width="1000" height="20"/><rect class="fill" width="{1000 * value:.1f}" height="20"/>'
        f'<path class="whisker" d="{whisker}"/></svg>'
    )


def profile(classes: Sequence[ClassScore]) -> str:
    """Returns the recall of every class as thin columns, the worst on the left; each says its name under the pointer."""
    left, top, width, height = 40, 8, 870, 150
    step = width / len(classes)
    columns = "".join(
        f'<rect x="{left + (place + 0.08) * step:.1f}" y="{top + height * (1 - found.share):.1f}" '
        f'width="{0.84 * step:.1f}" height="{max(height * found.share, 0.8):.1f}">'
        f"<title>{html.escape(found.name)}: {100 * found.share:.1f} %, {found.hits} of {found.count}</title></rect>"
        for place, found in enumerate(classes)
    )
    columns = f'<rect class="miss" x="{left}" y="{top}" width="{width}" height="{height}"/><g class="fill">{columns}</g>'
    lines = "".join(
        f'<path class="rule" d="M{left} {top + height * (1 - level / 100):.1f}H{left + width}"/>'
        f'<text class="y" x="{left - 6}" y="{top + height * (1 - level / 100) + 4:.1f}">{level}</text>'
        for level in (0, 25, 50, 75, 100)
    )
    label = f"Recall of {len(classes)} classes, from {100 * classes[0].share:.1f} to {100 * classes[-1].share:.1f} %"
    return _chart(left + width + 8, top + height + 10, label, (columns, lines))


def curve(drawn: Curve, metric: str) -> str:
    """Returns the accuracy that chose, and the training accuracy, over what was tried, the chosen value marked."""
    left, top, width, height = 50, 12, 470, 190
    scores = [score for point in drawn.points for score in (point.val_score, point.train_score) if score is not None]
    levels = levels_between(100 * min(scores), 100 * max(scores))
    low, high = levels[0] / 100, levels[-1] / 100
    places = [math.log10(point.x) if drawn.is_log else point.x for point in drawn.points]
    start, end = min(places), max(places)
    span = end - start or 1.0

    def across(place: float) -> float:
        return left + (width * (place - start) / span if end > start else width / 2)

    def up(score: float) -> float:
        return top + height * (high - score) / (high - low)

    parts = [
        f'<path class="rule" d="M{left} {up(level / 100):.1f}h{width}"/>'
        f'<text class="y" x="{left - 7}" y="{up(level / 100) + 4:.1f}">{level:g}</text>'
        for level in levels
    ]
    parts += [
        f'<path class="tick" d="M{across(place):.1f} {top + height}v5"/><text x="{across(place):.1f}" y="{top + height + 19}">{text}</text>'
        for place, text in _places(places, is_log=drawn.is_log)
    ]
    if drawn.chosen is not None:
        parts.append(f'<path class="chosen" d="M{across(places[drawn.chosen]):.1f} {top}v{height}"/>')
    order = sorted(range(len(places)), key=lambda index: places[index])
    parts += [
        _trace("train", [(across(places[i]), up(train)) for i in order if (train := drawn.points[i].train_score) is not None], dots=False),
        _trace("val", [(across(places[i]), up(drawn.points[i].val_score)) for i in order], dots=True),
    ]
    if drawn.chosen is not None:
        best = drawn.points[drawn.chosen]
        parts.append(f'<circle class="best" cx="{across(places[drawn.chosen]):.1f}" cy="{up(best.val_score):.1f}" r="4.5"/>')
    parts.append(f'<text x="{left + width / 2}" y="{top + height + 40}">{html.escape(drawn.x_label)}</text>')
    parts.append(f'<text transform="translate(12 {top + height / 2}) rotate(-90)">{html.escape(metric)}, %</text>')
    label = html.escape(f"Accuracy over {drawn.x_label}, {_chosen(drawn.points, drawn.chosen)}")
    return _chart(left + width + 22, top + height + 48, label, parts)


def comparison(table: Table, published: Sequence[PublishedRow]) -> str:
    """Returns bars of the first backbones of a table, set by set, above marks of published rows; empty where no set is one of the ten."""
    columns = [column for column in table.columns if column.dataset in TEN]
    lines = table.lines[:MAX_BARS]
    left, width, thick, lane = 92, 760, 13, 16 if published else 0
    band = len(lines) * thick + lane + 16
    total = 22 + band * len(columns)
    parts = [
        f'<path class="rule" d="M{left + width * level / 100} 20V{total - 6}"/><text x="{left + width * level / 100}" y="12">{level}</text>'
        for level in (0, 20, 40, 60, 80, 100)
    ]
    for place, column in enumerate(columns):
        y = 24 + place * band
        parts.append(f'<text class="set" x="{left - 10}" y="{y + len(lines) * thick / 2 + 4:.1f}">{html.escape(column.dataset)}</text>')
        for number, line in enumerate(lines):
            cell, middle = line.cells.get(column), y + number * thick + 5
            if cell is None or column in line.failures:
                absent = "failed" if column in line.failures else "–"
                parts.append(f'<text class="value" x="{left + 6}" y="{middle + 4}">{absent}</text>')
                continue
            value, error = width * cell.row.value, width * cell.row.standard_error
            parts.append(
                f"<g><title>{html.escape(line.model)}: {percent(cell.row.value)} ± {percent(cell.row.standard_error)}</title>"
                f'<rect class="s{number + 1}" x="{left}" y="{y + number * thick}" width="{value:.1f}" height="{thick - 3}" rx="1.5"/>'
                f'<path class="whisker" d="M{left + value - error:.1f} {middle}h{2 * error:.1f}"/>'
                f'<text class="value" x="{left + value + error + 6:.1f}" y="{middle + 4}">{percent(cell.row.value)}</text></g>'
            )
        parts += _marks(published, column.dataset, left, width, y + len(lines) * thick + 7)
    if not columns:
        return ""
    label = html.escape(f"Measured accuracies under protocol {table.protocol}, set by set, and published figures")
    return _chart(left + width + 56, total, label, parts)


def mark(number: int) -> str:
    """Returns the mark of a published row as a drawing of its own, for a legend."""
    drawn = f'<path class="p{number + 1}" d="{_MARKS[number % len(_MARKS)]}"/>'
    return f'<svg class="mark" viewBox="-7 -7 14 14" aria-hidden="true">{drawn}</svg>'


def levels_between(low: float, high: float) -> list[float]:
    """Returns round numbers, evenly spaced, from at or below `low` to at or above `high`: two at least, seven at most."""
    if not high > low:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / 4
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * number, 10) for number in range(first, last + 1)]


def _chart(width: float, height: float, label: str, parts: Iterable[str]) -> str:
    """Returns a drawing of its parts; `label` is escaped already."""
    return f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _marks(published: Sequence[PublishedRow], dataset: str, left: int, width: int, y: float) -> Iterator[str]:
    for place, row in enumerate(published):
        if (number := row.numbers.get(dataset)) is not None:
            x = left + width * number.value / 100
            told = html.escape(f"published: {row.model}, {row.data}, {row.protocol}: {number.value}")
            path = f'<path class="p{place + 1}" transform="translate({x:.1f} {y:.1f})" d="{_MARKS[place % len(_MARKS)]}"/>'
            yield f"<g><title>{told}</title>{path}</g>"


def _trace(name: str, points: Sequence[tuple[float, float]], *, dots: bool) -> str:
    if not points:
        return ""
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    circles = "".join(f'<circle class="{name}" cx="{x:.1f}" cy="{y:.1f}" r="2.2"/>' for x, y in points) if dots else ""
    return f'<path class="trace {name}" d="{path}"/>{circles}'


def _places(places: Sequence[float], *, is_log: bool) -> list[tuple[float, str]]:
    """Returns where the horizontal axis is labelled: whole decades, or the values that were tried, at most eight."""
    if not is_log:
        tried = sorted(set(places))
        return [(place, f"{place:g}") for place in tried[:: math.ceil(len(tried) / 8)]]
    decades = range(math.ceil(min(places) - 1e-9), math.floor(max(places) + 1e-9) + 1)
    if len(decades) < 2:
        return [(place, f"{10**place:.2g}") for place in sorted({min(places), max(places)})]
    return [(float(power), _power(power)) for power in decades[:: math.ceil(len(decades) / 8)]]


def _power(power: int) -> str:
    return "10" + (_MINUS if power < 0 else "") + "".join(_DIGITS[int(digit)] for digit in str(abs(power)))


def _chosen(points: Sequence[Point], chosen: int | None) -> str:
    return f"{len(points)} values" + (f", chosen {points[chosen].x:.3g}" if chosen is not None else "")
