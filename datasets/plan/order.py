"""The plan: in which order the samples of a pool are seen. A pure function of (shards, weights, seed, epoch); it knows no rank or worker.

An epoch visits the shards in a keyed random order, `window` shards at a time, and the samples of a window in a keyed random
order. Position p of an epoch is found in O(log shards) without any array of the epoch, so resuming anywhere costs the same,
and reading touches at most `window` shards at a time (two windows while a batch straddles their border).
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..counters import key, permute

Ids = npt.NDArray[np.int64]

PLAN_VERSION = 1  # a change of sample order is a breaking change: raise this, and say so in CHANGELOG.md

_SHARD_ORDER, _WINDOW_ORDER, _VISIT = 1, 2, 3  # what a key is for, so that no two uses share their draws


@dataclasses.dataclass(frozen=True, eq=False)
class EpochPlan:
    """One epoch's order; `take(start, stop)` gives any stretch of it."""

    num_samples: int
    _shard_order: Ids  # int64[S] shard ordinals as visited
    _visit_starts: Ids  # int64[S + 1] first position of each visited shard
    _window_starts: Ids  # int64[W + 1] first position of each window
    _first_ids: Ids  # int64[S] first sample id of each shard, by shard ordinal
    _window_keys: npt.NDArray[np.uint64]  # uint64[W]

    def take(self, start: int, stop: int) -> Ids:
        """Returns the sample ids at positions start ≤ p < stop of the epoch, int64[stop - start]."""
        assert 0 <= start <= stop <= self.num_samples
        positions = np.arange(start, stop, dtype=np.int64)
        windows = np.searchsorted(self._window_starts, positions, side="right") - 1
        for window in np.unique(windows):
            inside = windows == window
            first, end = self._window_starts[window], self._window_starts[window + 1]
            positions[inside] = first + permute(positions[inside] - first, int(end - first), self._window_keys[window])
        visited = np.searchsorted(self._visit_starts, positions, side="right") - 1
        rows = positions - self._visit_starts[visited]
        ids: Ids = self._first_ids[self._shard_order[visited]] + rows
        return ids


def plan(shard_counts: Ids, weights: None = None, *, seed: int, epoch: int, window: int) -> EpochPlan:
    """Returns the order of one epoch.

    Args:
        shard_counts: int64[S] samples per shard, empty shards allowed; sample ids number the samples through the shards.
        weights: the weight column; only None (every sample once) is implemented.
        seed: any integer; epoch: counted from 0.
        window: shards interleaved at a time, at least 1.
    """
    if weights is not None:
        raise NotImplementedError("weighted plans are not implemented; weights must be None")
    assert window >= 1
    num_shards = len(shard_counts)
    first_ids = np.concatenate([[0], np.cumsum(shard_counts)[:-1]]).astype(np.int64)
    order = permute(np.arange(num_shards, dtype=np.int64), num_shards, key(seed, epoch, _SHARD_ORDER))
    visit_starts = np.concatenate([[0], np.cumsum(shard_counts[order])]).astype(np.int64)
    borders = np.append(np.arange(0, num_shards, window), num_shards)
    keys = np.array([key(seed, epoch, _WINDOW_ORDER, number) for number in range(len(borders) - 1)], np.uint64)
    return EpochPlan(int(shard_counts.sum()), order, visit_starts, visit_starts[borders], first_ids, keys)


class Visits(NamedTuple):
    """Which samples are seen, in order; no two visits of one sample share a key, from which all its randomness is drawn."""

    ids: Ids  # int64[n] sample ids
    keys: npt.NDArray[np.uint64]  # uint64[n]


class Order:
    """The endless order: epoch after epoch, by global position; a batch may straddle two epochs, so nothing is dropped."""

    def __init__(self, shard_counts: Ids, *, seed: int, window: int) -> None:
        self._shard_counts, self._seed, self._window = shard_counts, seed, window
        self.num_samples = int(shard_counts.sum())
        assert self.num_samples > 0
        self._epoch = functools.lru_cache(maxsize=2)(self._plan_epoch)

    def take(self, start: int, stop: int) -> Visits:
        """Returns the visits at the global positions start ≤ p < stop."""
        ids, keys = [], []
        while start < stop:
            epoch, inside = divmod(start, self.num_samples)
            count = min(stop - start, self.num_samples - inside)
            ids.append(self._epoch(epoch).take(inside, inside + count))
            keys.append(np.full(count, key(self._seed, epoch, _VISIT), np.uint64))
            start += count
        return Visits(np.concatenate([np.zeros(0, np.int64), *ids]), np.concatenate([np.zeros(0, np.uint64), *keys]))

    def shards_ahead(self, start: int, num_ahead: int) -> list[int]:
        """Returns the ordinals of the shards that position `start` may read, then the next `num_ahead` that come into use."""
        raise NotImplementedError

    def _plan_epoch(self, epoch: int) -> EpochPlan:
        return plan(self._shard_counts, None, seed=self._seed, epoch=epoch, window=self._window)

    def __reduce__(self) -> tuple[object, ...]:
        return functools.partial(Order, seed=self._seed, window=self._window), (self._shard_counts,)
