"""Drawings of the report as inline SVG. Colours are the page's, so that they follow its theme; no font or file comes from elsewhere.

matplotlib knows no theme, so each role is drawn in a colour that stands for it, and that colour is then replaced by the page's variable.
"""

import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .spread import Spread

Floats = npt.NDArray[np.float64]

WIDE, HALF = (9.2, 3.0), (4.5, 2.7)
"""Sizes of a drawing that fills the page, and of one of two side by side, in which text comes out alike."""

_ROLES = {"ink": "#010101", "soft": "#020202", "rule": "#030303"} | {f"s{number}": f"#0404{number:02d}" for number in range(1, 7)}
_RC = {"svg.fonttype": "none", "font.size": 7.5, "axes.spines.top": False, "axes.spines.right": False}
_MOST_BORDERS = 40

_REPLACED = {
    r"<metadata>.*?</metadata>": "",
    r"<style .*?</style>": "",  # it would hold for the whole page
    r'<g id="[^"]*">': "<g>",  # the same in every drawing
    r"font-family: [^;]*; ": "",
    "xlink:href": "href",
    r"\s*\n\s*": "\n",
} | {colour: f"var(--{role})" for role, colour in _ROLES.items()}
"""What of matplotlib's SVG is written otherwise, as regular expressions."""


@dataclasses.dataclass(frozen=True)
class Bars:
    """One histogram of several that lie over each other."""

    counts: npt.NDArray[np.int64]
    role: str
    """Its colour: s1 to s6 of the page."""


def over_arrival(series: Mapping[str, Spread], num_samples: int, borders: Sequence[int], label: str, size: tuple[float, float]) -> str:
    """Returns medians over arrival, each in its band from the 10 % to the 90 % quantile.

    Args:
        series: gains by bin of arrival, by role.
        num_samples: what the bins share out evenly.
        borders: arrivals at which another source begins.
        label: what the drawing shows, for those who cannot see it; another on each drawing of a page.
    """
    figure, axes = _axes(size)
    for role, spread in series.items():
        num_bins = len(spread.counts)
        middles = (np.arange(num_bins) + 0.5) * num_samples / num_bins
        low, median, high = (spread.quantile(share) for share in (0.1, 0.5, 0.9))
        axes.fill_between(middles, low, high, color=_ROLES[role], alpha=0.18, linewidth=0)
        axes.plot(middles, median, color=_ROLES[role], linewidth=1.6, marker="o" if num_bins == 1 else None, markersize=4)
    for border in borders if len(borders) <= _MOST_BORDERS else ():
        axes.axvline(border, color=_ROLES["soft"], linewidth=0.6, linestyle=(0, (2, 3)))
    axes.set_xlim(0, num_samples)
    axes.set_ylim(bottom=0)
    _finish(axes, "arrival", "gain (cosine distance)")
    return _svg(figure, label)


def histogram(
    bars: Sequence[Bars],
    edges: Floats,
    x_label: str,
    label: str,
    *,
    size: tuple[float, float] = HALF,
    threshold: float | None = None,
    log: bool = False,
) -> str:
    """Returns histograms over the same bins, and a line at the threshold, where there is one.

    Args:
        label: as of `over_arrival`.
        log: counts on a logarithmic scale.
    """
    figure, axes = _axes(size)
    for each in bars:
        axes.stairs(each.counts, edges, fill=True, color=_ROLES[each.role], alpha=0.55, linewidth=0)
        axes.stairs(each.counts, edges, color=_ROLES[each.role], linewidth=1.1)
    if threshold is not None:
        axes.axvline(threshold, color=_ROLES["ink"], linewidth=0.9, linestyle=(0, (3, 2)))
    if log:
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.7)
        axes.minorticks_off()
    _finish(axes, x_label, "samples")
    return _svg(figure, label)


def short(number: float) -> str:
    """Returns a count as an axis has it: 2.5M, 40k, 12."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= unit:
            return f"{number / unit:g}{letter}"
    return f"{number:g}"


def _axes(size: tuple[float, float]) -> tuple[Any, Any]:
    import matplotlib.figure  # 0.3 s to import, and only wanted here

    figure = matplotlib.figure.Figure(figsize=size)
    width, height = size
    margins = {"left": 0.56 / width, "right": 1 - 0.12 / width, "bottom": 0.44 / height, "top": 1 - 0.1 / height}
    with matplotlib.rc_context(_RC):
        return figure, figure.subplots(gridspec_kw=margins)


def _finish(axes: Any, x_label: str, y_label: str) -> None:
    import matplotlib.ticker

    axes.set_xlabel(x_label, color=_ROLES["soft"])
    axes.set_ylabel(y_label, color=_ROLES["soft"])
    axes.grid(axis="y", color=_ROLES["rule"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_ROLES["soft"], length=2.5, width=0.7)
    axes.patch.set_visible(False)
    for name, spine in axes.spines.items():
        spine.set(color=_ROLES["soft"], linewidth=0.7, visible=name in ("left", "bottom"))
    for axis, label in ((axes.xaxis, x_label), (axes.yaxis, y_label)):
        if label in ("arrival", "samples"):
            axis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: short(value)))


def _svg(figure: Any, label: str) -> str:
    """Returns a figure as an `<svg>` that fills the width it is given; `label` is ours, without markup."""
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context(_RC | {"svg.hashsalt": label}):  # of which the ids are made that one part of a drawing finds another by
        figure.savefig(file, format="svg", transparent=True)
    text = file.getvalue()
    size = re.search(r'viewBox="[^"]*"', text)
    assert size is not None, "what matplotlib writes"
    inside = text[text.index(">", size.end()) + 1 :]
    for found, replacement in _REPLACED.items():
        inside = re.sub(found, replacement, inside, flags=re.DOTALL)
    return f'<svg class="chart" {size[0]} role="img" aria-label="{label}">{inside.strip()}'
