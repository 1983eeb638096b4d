"""The endless order of samples: a pure function of (data, weights, seed) that knows no rank, worker or batch.

Position p of the order falls into an epoch, and its place in that epoch into a shard and a row. Any stretch can be asked for in any
process at the same cost, so the state of a stream is the number of samples consumed.
"""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ..counters import key, mix
from .drawing import DrawnRows, EveryRow, Ids, LeftRows
from .epoch import EpochPlan
from .rates import Rates

PLAN_FORMAT = 2  # a change of sample order is a breaking change: raise this, and say so in CHANGELOG.md

_EPOCH, _DRAW, _VISIT = 1, 2, 3  # what a key is for, so that no two uses share their draws

_SPARE_TABLES = 8  # of shards read ahead, or of the epoch before


class Visits(NamedTuple):
    """Which samples are seen, in order; no two visits of one sample share a key, from which all its randomness is drawn."""

    ids: Ids  # int64[n] sample ids
    keys: npt.NDArray[np.uint64]  # uint64[n]


class SampleOrder(Protocol):
    """An endless order of samples."""

    @property
    def epoch_samples(self) -> int:
        """Samples an epoch."""

    def boundary(self, position: int) -> int:
        """Returns the first position ≥ `position` at which an epoch begins; of coupled epochs, a pair of them."""

    def at(self, positions: Ids) -> Visits:
        """Returns the visits at any global positions, int64[n], each from 0."""

    def take(self, start: int, stop: int) -> Visits:
        """Returns the visits at the global positions start ≤ p < stop."""

    def shards_in(self, first: int, last: int, num_ahead: int) -> list[int]:
        """Returns the ordinals of the shards in use at the positions first ≤ p ≤ last, then of the next `num_ahead` to come into use."""


class Order:
    """The order of one shard folder: epoch after epoch, with nothing dropped between them.

    Args:
        shard_counts: int64[S] samples per shard, empty shards allowed; sample ids number the samples through the shards.
        seed: any integer.
        window: shards interleaved at a time.
        rates: the weight column; None takes every sample once an epoch. With a second column the epochs 1, 3, 5, … draw by that one.
        coupled: the epochs come in pairs, the second of which takes what the first, drawn by the rates, left over: a pair sees every
            sample exactly once (the complement rule of two-phase sampling). No rate may exceed 1. Where the rates have a membership
            column, that holds of the members, and no other sample is seen.
    """

    def __init__(self, shard_counts: Ids, *, seed: int, window: int, rates: Rates | None = None, coupled: bool = False) -> None:
        assert window >= 1
        self._shard_counts, self._seed, self._window, self._rates, self._coupled = shard_counts, seed, window, rates, coupled
        total = int(shard_counts.sum())
        drawn = total if rates is None else rates.epoch_samples
        second, members = (None, None) if rates is None else (rates.second, rates.members)
        assert not coupled or second is None, "what is left over is drawn by no column"
        assert coupled or members is None, "only of coupled epochs the second takes what is left of some samples"
        paired = total if members is None else members.epoch_samples
        self._lengths = (drawn, paired - drawn) if coupled else (drawn,) if second is None else (drawn, second.epoch_samples)
        assert sum(self._lengths) > 0
        self._first_ids: Ids = (np.cumsum(shard_counts) - shard_counts).astype(np.int64)
        self._plan: Callable[[int], EpochPlan] = functools.lru_cache(maxsize=3)(self._make_plan)
        self._drawn: Callable[[int], DrawnRows] = functools.lru_cache(maxsize=2)(self._draw)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Samples of every epoch, or of the two kinds that take turns."""
        return self._lengths

    @property
    def epoch_samples(self) -> int:
        """Samples an epoch; of coupled epochs, or of two columns, the mean, rounded up."""
        return -(-sum(self._lengths) // len(self._lengths))

    def boundary(self, position: int) -> int:
        """Returns the first position ≥ `position` at which an epoch begins; of coupled epochs, a pair of them."""
        periods, inside = divmod(position, sum(self._lengths))
        begins = (0, sum(self._lengths)) if self._coupled else (0, *itertools.accumulate(self._lengths))
        return periods * sum(self._lengths) + next(begin for begin in begins if begin >= inside)

    def at(self, positions: Ids) -> Visits:
        """Returns the visits at any global positions, int64[n], each from 0."""
        periods, inside = np.divmod(positions, sum(self._lengths))
        late = inside >= self._lengths[0]
        epochs = periods * len(self._lengths) + late
        inside = np.where(late, inside - self._lengths[0], inside)
        ids, keys = np.empty(len(positions), np.int64), np.empty(len(positions), np.uint64)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            ids[chosen], copies = self._plan(epoch).at(inside[chosen])
            keys[chosen] = mix(key(self._seed, epoch, _VISIT) ^ copies.astype(np.uint64))
        return Visits(ids, keys)

    def take(self, start: int, stop: int) -> Visits:
        """Returns the visits at the global positions start ≤ p < stop."""
        return self.at(np.arange(start, stop, dtype=np.int64))

    def shards_in(self, first: int, last: int, num_ahead: int) -> list[int]:
        """Returns the ordinals of the shards in use at the global positions first ≤ p ≤ last, then of the next `num_ahead`."""
        (start, inside), (stop, last_inside) = self._place(first), self._place(last)
        shards = list[int]()
        for epoch in range(start, stop + 1):
            length = self._plan(epoch).num_items
            if length:
                ends = inside if epoch == start else 0, last_inside if epoch == stop else length - 1
                shards += self._plan(epoch).shards_in(*ends, num_ahead if epoch == stop else 0)
        used = self._plan(stop).shards_in(last_inside, last_inside, 0)
        missing = num_ahead - (len(self._plan(stop).shards_in(last_inside, last_inside, num_ahead)) - len(used))
        if missing > 0:  # of two epochs that take turns one may have no sample
            following = next(plan for plan in map(self._plan, (stop + 1, stop + 2)) if plan.num_items)
            shards += following.shards_in(0, 0, 0)[:missing]
        return list(dict.fromkeys(shards))

    def _place(self, position: int) -> tuple[int, int]:
        """Returns (epoch, position in it)."""
        period, inside = divmod(position, sum(self._lengths))
        late = inside >= self._lengths[0]
        return period * len(self._lengths) + late, inside - self._lengths[0] * late

    def _make_plan(self, epoch: int) -> EpochPlan:
        if self._rates is None:
            drawing: EveryRow | DrawnRows | LeftRows = EveryRow(self._shard_counts, key(self._seed, epoch, _DRAW))
        elif not self._coupled:
            drawing = self._drawn(epoch)
        elif epoch % 2:
            drawing = LeftRows(self._shard_counts, self._drawn(epoch // 2), self._num_tables, self._rates.members)
        else:
            drawing = self._drawn(epoch // 2)
        return EpochPlan(drawing, self._first_ids, self._window, key(self._seed, epoch, _EPOCH))

    def _draw(self, number: int) -> DrawnRows:
        assert self._rates is not None, "only a weighted order draws"
        rates = self._rates.second if number % 2 and self._rates.second is not None else self._rates
        return DrawnRows(rates, key(self._seed, number, _DRAW), self._num_tables)

    @property
    def _num_tables(self) -> int:
        return self._window + _SPARE_TABLES

    def __reduce__(self) -> tuple[object, ...]:
        again = functools.partial(Order, seed=self._seed, window=self._window, rates=self._rates, coupled=self._coupled)
        return again, (self._shard_counts,)
