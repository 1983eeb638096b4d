"""How much the loss of a drawn sample weighs, so that what is drawn more often counts for less.

    w_i = (1 / p_i) ** β / m,    m = Σ p · (1 / p) ** β / Σ p over the samples of p > 0

where p_i is how often an epoch of the plan takes sample i on average. m is the mean of (1 / p) ** β over what is drawn, so the mean weight
is 1 and the step's length stays. With β = 0 all weigh the same; with β = 1 the mean of w · loss over what is drawn has as its expectation
the plain mean of the loss over all samples that are drawn at all (Horvitz and Thompson 1952; β between as in arXiv 1511.05952). That holds
of a loss that is a sum over samples, and not of one that compares the samples of a batch with each other.

Letters: N samples of a source, n rows asked for.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .drawing import Ids
from .rates import ONE, Rates, open_rates
from .recipe import PlanRecipe

Floats = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class SourceRates:
    """How often the samples of one shard folder are taken."""

    num_samples: int
    columns: tuple[Rates, ...]
    """Of every epoch, or of the two phases that take turns; none: each sample as often as any other."""
    pace: float
    """By how much an epoch of the plan takes more of it than an epoch of its own."""

    def of_rows(self, rows: Ids) -> Floats:
        """Returns float64[n] visits an epoch of the plan, of two phases the mean."""
        if not self.columns:
            return np.full(len(rows), self.pace)
        return self._visits([column.of_rows(rows) for column in self.columns])

    def sums(self, beta: float) -> tuple[float, float]:
        """Returns (Σ p, Σ p · (1 / p) ** β) over its samples of p > 0."""
        total = weighted = 0.0
        for rates in self._positive():
            total, weighted = total + float(rates.sum()), weighted + float((rates ** (1 - beta)).sum())
        return total, weighted

    def _positive(self) -> Iterator[Floats]:
        """Yields the rates above 0, shard by shard."""
        if not self.columns:
            yield np.full(self.num_samples if self.pace else 0, self.pace)
            return
        for shard in np.flatnonzero(np.any([np.diff(column.starts) for column in self.columns], axis=0)).tolist():
            visits = self._visits([column.of_shard(shard) for column in self.columns])
            yield visits[visits > 0]

    def _visits(self, units: Sequence[npt.NDArray[np.uint32]]) -> Floats:
        return np.asarray(np.mean(units, axis=0) * (self.pace / ONE))


@dataclasses.dataclass(frozen=True)
class VersionWeights:
    """The weights of one plan version."""

    sources: tuple[SourceRates, ...]
    beta: float
    mean: float
    """m."""

    def of(self, ids: Ids) -> Floats:
        """Returns float64[n]; 1 for what this version does not draw, such as a stand-in that the next version gave."""
        weights, first = np.ones(len(ids)), 0
        for source in self.sources:
            chosen = np.flatnonzero((ids >= first) & (ids < first + source.num_samples))
            rates = source.of_rows(ids[chosen] - first)
            drawn = rates > 0
            weights[chosen[drawn]] = rates[drawn] ** -self.beta / self.mean
            first += source.num_samples
        return weights


class LossWeights:
    """The weights of versions that follow one another, as `VersionedOrder` has them.

    Args:
        starts: first global position of each, increasing. Positions before the first are not asked for.
        versions: as many.
    """

    def __init__(self, starts: Sequence[int], versions: Sequence[VersionWeights]) -> None:
        assert len(starts) == len(versions) > 0
        self._starts, self._versions = np.array(starts, np.int64), tuple(versions)

    def of(self, positions: Ids, ids: Ids) -> npt.NDArray[np.float32]:
        """Returns float32[n] the weights of the samples that are shown at some positions of the order."""
        holding = self._starts.searchsorted(positions, side="right") - 1
        weights = np.empty(len(ids), np.float32)
        for version in np.unique(holding).tolist():
            chosen = holding == version
            weights[chosen] = self._versions[version].of(ids[chosen])
        return weights


def version_weights(recipe: PlanRecipe, shard_counts: Sequence[Ids], rates_root: Path, beta: float) -> VersionWeights:
    """Returns the weights of a plan version; reads every weight column once.

    Args:
        shard_counts: int64[S] of each source.
        rates_root: folder with the weight columns by identity.

    Raises:
        DataError: when a weight column is missing or damaged.
    """
    total, sources = sum(source.quota for source in recipe.sources), []
    for source, counts in zip(recipe.sources, shard_counts, strict=True):
        rates = open_rates(rates_root / source.rates, counts) if source.rates else None
        columns = () if rates is None else (rates,) if rates.second is None else (rates, rates.second)
        own_epoch = float(np.mean([column.epoch_samples for column in columns])) if columns else int(counts.sum())
        in_phases = len(columns) > 1  # then each folder goes through its own epochs
        pace = 1.0 if not total or (in_phases and source.quota) else source.quota / own_epoch
        sources.append(SourceRates(int(counts.sum()), columns, pace))
    sums = [source.sums(beta) for source in sources]
    return VersionWeights(tuple(sources), beta, sum(weighted for _, weighted in sums) / sum(drawn for drawn, _ in sums))
