"""The tables of `growth_helps.py`: means and differences over seeds with their confidence intervals, and what growth found."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.stats
from planted_pool import EXACT_KIND, NEAR_KIND, UNIQUE_KIND, Truth

CONFIDENCE = 0.95
METRICS = ("top1", "probe")
CONTRASTS = (
    ("deduplicate", "random"),
    ("gain, proportional", "random"),
    ("gain, two-phase", "random"),
    ("both, proportional", "deduplicate"),
    ("both, two-phase", "deduplicate"),
    ("deduplicate", "random, classes balanced"),
    ("one of each", "deduplicate"),
    ("deduplicate, static", "random, static"),
    ("gain, static", "random, static"),
    ("both, static", "random, static"),
    ("both, static", "deduplicate, static"),
)
"""Which arm is compared with which: fixed before any policy was trained, when first runs of random and the last two had been seen."""

Scores = Mapping[str, Mapping[str, Sequence[float]]]
"""Arm → metric → a share of 1 for every seed, in the order of the seeds."""


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean over seeds and half the width of its confidence interval."""

    mean: float
    half: float

    @property
    def is_above_zero(self) -> bool:
        """Whether all of it is."""
        return self.mean > self.half

    @property
    def is_below_zero(self) -> bool:
        """Whether all of it is."""
        return self.mean < -self.half

    def text(self, sign: str = "") -> str:
        """Returns it in percent."""
        return f"{100 * self.mean:{sign}.2f} ± {100 * self.half:.2f}".replace("-", "−")


def interval(values: Sequence[float]) -> Interval:
    """Returns the mean of independent values with its interval by Student's t law."""
    number = len(values)
    if number < 2:
        return Interval(float(np.mean(values)), math.inf)
    half = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, number - 1) * np.std(values, ddof=1) / math.sqrt(number)
    return Interval(float(np.mean(values)), float(half))


def difference(scores: Scores, arm: str, other: str, metric: str) -> Interval:
    """Returns arm less other, seed by seed."""
    pairs = zip(scores[arm][metric], scores[other][metric], strict=True)
    return interval([ours - theirs for ours, theirs in pairs])


@dataclasses.dataclass(frozen=True)
class Share:
    """What an arm takes of the pool."""

    samples: float
    """An epoch, mean of two where it has two phases."""
    distinct: float
    """(Σ v)² / Σ v² over the distinct images, v the expected visits of an image with its copies: so many, were all seen equally often."""
    untouched: float
    """Share of the samples that are of classes without copies; 0.4 where classes are equal."""


def share(visits: npt.NDArray[np.floating[Any]], truth: Truth) -> Share:
    """Returns what float[N] expected visits of the samples of the pool come to."""
    by_origin = np.bincount(truth.origin, weights=visits)
    total = float(visits.sum())
    untouched = float(visits[truth.kind == UNIQUE_KIND].sum())
    return Share(total, total**2 / float((by_origin**2).sum()), untouched / total)


def result_table(scores: Scores, shares: Mapping[str, Share]) -> list[list[str]]:
    """Returns a row for every arm: what it sees, and both metrics with their differences to random."""
    header = ["arm", "samples an epoch", "effective distinct images", "of classes without copies, %"]
    table = [[*header, "test top-1, %", "− random", "linear probe, %", "− random"]]
    for arm, metrics in scores.items():
        seen = shares[arm]
        cells = [arm, f"{seen.samples:,.0f}", f"{seen.distinct:,.0f}", f"{100 * seen.untouched:.1f}"]
        for metric in METRICS:
            ahead = "" if arm == "random" else difference(scores, arm, "random", metric).text("+")
            cells += [interval(metrics[metric]).text(), ahead]
        table.append(cells)
    return table


def contrast_lines(scores: Scores) -> list[str]:
    """Returns, in Markdown, what each of the comparisons came to."""
    lines = []
    for arm, other in CONTRASTS:
        told = []
        for metric, name in zip(METRICS, ("top-1", "probe"), strict=True):
            found = difference(scores, arm, other, metric)
            verdict = "better" if found.is_above_zero else "worse" if found.is_below_zero else "not told apart"
            told.append(f"{name} {found.text('+')} ({verdict})")
        lines.append(f"- *{arm}* less *{other}*: {', '.join(told)}")
    return lines


@dataclasses.dataclass(frozen=True)
class Found:
    """What growth said of the planted pool."""

    threshold: float
    flagged: int
    repeats: int
    precision: float
    recall_exact: float
    recall_near: float
    lost: float
    """Share of first appearances that were taken for duplicates."""
    gain_untouched: float
    gain_first: float
    gain_exact: float
    gain_near: float
    """Mean gain of images of classes without copies, of first appearances of copied images, and of repeats."""


def found(duplicate: npt.NDArray[np.bool_], gain: npt.NDArray[np.floating[Any]], truth: Truth, threshold: float) -> Found:
    """Compares bool[N] flags and float[N] gains with what was planted."""
    repeat, kind = truth.is_repeat, truth.kind
    exact, near = repeat & (kind == EXACT_KIND), repeat & (kind == NEAR_KIND)
    untouched = kind == UNIQUE_KIND
    first = ~repeat & ~untouched & (truth.appearances > 1)
    return Found(
        threshold=threshold,
        flagged=int(duplicate.sum()),
        repeats=int(repeat.sum()),
        precision=float(repeat[duplicate].mean()),
        recall_exact=float(duplicate[exact].mean()),
        recall_near=float(duplicate[near].mean()),
        lost=float(duplicate[~repeat].mean()),
        gain_untouched=float(gain[untouched].mean()),
        gain_first=float(gain[first].mean()),
        gain_exact=float(gain[exact].mean()),
        gain_near=float(gain[near].mean()),
    )


def found_lines(told: Found) -> list[str]:
    """Returns in Markdown what growth said of the planted pool."""
    return [
        f"- Duplicates: {told.flagged:,} flagged within a distance of {told.threshold:.4f}, {told.repeats:,} planted; precision"
        f" {100 * told.precision:.1f} %, recall {100 * told.recall_exact:.1f} % of the exact and {100 * told.recall_near:.1f} % of the"
        f" near-copies; {100 * told.lost:.2f} % of the first appearances were flagged.",
        f"- Mean gain: {told.gain_untouched:.4f} in classes without copies, {told.gain_first:.4f} at the first appearance of a copied"
        f" image, {told.gain_exact:.4f} of exact repeats, {told.gain_near:.4f} of near ones.",
    ]
