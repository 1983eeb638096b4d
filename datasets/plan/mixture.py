"""Several shard folders in one order, each with its share of every epoch.

An epoch gives source i a quota of N_i places. Places are apportioned by Webster's rule (item k of source i comes at time
(2k + 1) / 2N_i, and earlier times come first), so that any stretch has every source's share to within one place per source; then the
places of each block are permuted. Each source goes through its own endless order at its own pace: a quota of 2.5 times its size
sees every sample twice or three times an epoch and five times in two, a quota below its size goes on in the next epoch where it stopped.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from ..counters import key, mix, permute
from .drawing import Ids
from .order import Order, Visits

_BLOCK = 1024  # places permuted together
_TIME = 1 << 62
_PLACES = 4  # what the key is for; see order.py


class MixedOrder:
    """The order over several sources; sample ids and shard ordinals number them one after another.

    Args:
        orders: one per source; quotas: places of an epoch for each, at least one above 0.
        num_samples, num_shards: of each source, for the numbering.
        seed: any integer.
    """

    def __init__(
        self, orders: Sequence[Order], quotas: Sequence[int], *, num_samples: Sequence[int], num_shards: Sequence[int], seed: int
    ) -> None:
        assert len(orders) == len(quotas) == len(num_samples) == len(num_shards)
        assert max(quotas) > 0
        self._orders, self._quotas, self._seed = tuple(orders), tuple(quotas), seed
        self._num_samples, self._num_shards = tuple(num_samples), tuple(num_shards)
        self._first_ids = [sum(num_samples[:i]) for i in range(len(orders))]
        self._first_shards = [sum(num_shards[:i]) for i in range(len(orders))]
        self._paces = [_TIME // quota if quota else 0 for quota in quotas]
        self._before: Callable[[int], tuple[int, ...]] = functools.lru_cache(maxsize=16)(self._apportion)

    @property
    def epoch_samples(self) -> int:
        """Places of an epoch."""
        return sum(self._quotas)

    def at(self, positions: Ids) -> Visits:
        """Returns the visits at any global positions, int64[n], each from 0."""
        sources, numbers = self._locate(positions)
        ids, keys = np.empty(len(positions), np.int64), np.empty(len(positions), np.uint64)
        for source in np.unique(sources).tolist():
            chosen = sources == source
            visits = self._orders[source].at(numbers[chosen])
            ids[chosen], keys[chosen] = visits.ids + self._first_ids[source], visits.keys
        return Visits(ids, keys)

    def take(self, start: int, stop: int) -> Visits:
        """Returns the visits at the global positions start ≤ p < stop."""
        return self.at(np.arange(start, stop, dtype=np.int64))

    def shards_ahead(self, start: int, num_ahead: int) -> list[int]:
        """Returns the ordinals of the shards in use at position `start`, then of the next `num_ahead` of each source.

        A place is permuted with its block, so that what is in use is what the block reads.
        """
        epoch, inside = divmod(start, self.epoch_samples)
        block = inside // _BLOCK * _BLOCK
        before, after = self._before(block), self._before(min(block + _BLOCK, self.epoch_samples))
        shards = list[int]()
        for source, (start, stop) in enumerate(zip(before, after, strict=True)):
            if stop > start:
                base, first = epoch * self._quotas[source], self._first_shards[source]
                shards += [first + shard for shard in self._orders[source].shards_in(base + start, base + stop - 1, num_ahead)]
        return shards

    def _locate(self, positions: Ids) -> tuple[Ids, Ids]:
        """Returns (source, position in the source's own order) of each place."""
        epochs, inside = np.divmod(positions, self.epoch_samples)
        blocks, offsets = np.divmod(inside, _BLOCK)
        sizes = np.minimum(self.epoch_samples - blocks * _BLOCK, _BLOCK)
        offsets = permute(offsets, sizes, mix(mix(key(self._seed, _PLACES) ^ epochs.astype(np.uint64)) ^ blocks.astype(np.uint64)))
        sources, numbers = np.empty_like(positions), np.empty_like(positions)
        for block in np.unique(blocks).tolist():
            chosen = np.flatnonzero(blocks == block)
            starts = np.array(self._before(block * _BLOCK))
            stops = np.array(self._before(min((block + 1) * _BLOCK, self.epoch_samples)))
            ends = np.cumsum(stops - starts)
            found = ends.searchsorted(offsets[chosen], side="right")
            sources[chosen] = found
            inside_source = starts[found] + offsets[chosen] - (ends - (stops - starts))[found]
            numbers[chosen] = epochs[chosen] * np.array(self._quotas)[found] + inside_source
        return sources, numbers

    def _apportion(self, places: int) -> tuple[int, ...]:
        """Returns how many of the first `places` places of an epoch fall to each source, exactly `places` in all."""
        low, high = 0, 2 * _TIME  # the least time by which so many items have come
        while low < high:
            time = (low + high) // 2
            if sum(self._counts(time)) >= places:
                high = time
            else:
                low = time + 1
        counts, due = self._counts(low - 1), self._counts(low)
        for source in range(len(counts)):  # items of one time: sources in order
            take = min(due[source] - counts[source], places - sum(counts))
            counts[source] += take
        return tuple(counts)

    def _counts(self, time: int) -> list[int]:
        """Returns how many items of each source come by `time`, where item k of a source with pace m comes at (2k + 1) · m."""
        return [min((time // pace + 1) // 2, quota) if pace else 0 for pace, quota in zip(self._paces, self._quotas, strict=True)]

    def __reduce__(self) -> tuple[object, ...]:
        again = functools.partial(MixedOrder, num_samples=self._num_samples, num_shards=self._num_shards, seed=self._seed)
        return again, (self._orders, self._quotas)
