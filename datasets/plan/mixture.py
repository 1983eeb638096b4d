"""Several shard folders in one order, each with its share of every epoch.

An epoch gives source i a quota of N_i places. Item k of source i comes at time (k + φ_i) / N_i with a keyed phase φ_i in [0, 1), and
earlier times come first: a divisor method of apportionment, under which any stretch has n places of a source within about one of its
share (with hundreds of folders a large one may be a few places off); then the places of each block are permuted. Each source goes
through its own endless order at its own pace: a quota of 2.5 times its size sees every sample twice or three times an epoch and five
times in two, a quota below its size goes on in the next epoch where it stopped.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from ..counters import key, mix, permute
from .drawing import Ids
from .order import SampleOrder, Visits

BLOCK = 1024
"""Places permuted together."""

_TIME = 1 << 62
_PLACES, _PHASE = 4, 5  # what a key is for; see order.py


class MixedOrder:
    """The order over several sources; sample ids and shard ordinals number them one after another.

    Args:
        orders: one per source; quotas: places of an epoch for each, at least one above 0.
        num_samples, num_shards: of each source, for the numbering.
        seed: any integer.
    """

    def __init__(
        self, orders: Sequence[SampleOrder], quotas: Sequence[int], *, num_samples: Sequence[int], num_shards: Sequence[int], seed: int
    ) -> None:
        assert len(orders) == len(quotas) == len(num_samples) == len(num_shards)
        assert max(quotas) > 0
        self._orders, self._quotas, self._seed = tuple(orders), tuple(quotas), seed
        self._num_samples, self._num_shards = tuple(num_samples), tuple(num_shards)
        self._first_ids = [sum(num_samples[:i]) for i in range(len(orders))]
        self._first_shards = [sum(num_shards[:i]) for i in range(len(orders))]
        self._paces = [_TIME // quota if quota else 0 for quota in quotas]
        self._phases = [int(key(seed, _PHASE, source)) % pace if pace else 0 for source, pace in enumerate(self._paces)]
        self._before: Callable[[int], tuple[int, ...]] = functools.lru_cache(maxsize=16)(self._apportion)

    @property
    def epoch_samples(self) -> int:
        """Places of an epoch."""
        return sum(self._quotas)

    def boundary(self, position: int) -> int:
        """Returns the first position ≥ `position` at which an epoch begins."""
        return -(-position // self.epoch_samples) * self.epoch_samples

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

    def shards_in(self, first: int, last: int, num_ahead: int) -> list[int]:
        """Returns the ordinals of the shards in use at the positions first ≤ p ≤ last, then of the next `num_ahead` of each source.

        A place is permuted with its block, so that what is in use is what the blocks read.
        """
        begins, ends = self._reached(first, 0), self._reached(last, BLOCK)
        shards = list[int]()
        for source, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            if end > begin:
                shards += [self._first_shards[source] + shard for shard in self._orders[source].shards_in(begin, end - 1, num_ahead)]
        return shards

    def _reached(self, place: int, places: int) -> list[int]:
        """Returns the positions of the sources' own orders `places` after the begin of the block that holds a place, at most an epoch's."""
        epoch, inside = divmod(place, self.epoch_samples)
        counts = self._before(min(inside // BLOCK * BLOCK + places, self.epoch_samples))
        return [epoch * quota + count for quota, count in zip(self._quotas, counts, strict=True)]

    def _locate(self, positions: Ids) -> tuple[Ids, Ids]:
        """Returns (source, position in the source's own order) of each place."""
        epochs, inside = np.divmod(positions, self.epoch_samples)
        blocks, offsets = np.divmod(inside, BLOCK)
        sizes = np.minimum(self.epoch_samples - blocks * BLOCK, BLOCK)
        offsets = permute(offsets, sizes, mix(mix(key(self._seed, _PLACES) ^ epochs.astype(np.uint64)) ^ blocks.astype(np.uint64)))
        sources, numbers = np.empty_like(positions), np.empty_like(positions)
        for block in np.unique(blocks).tolist():
            chosen = np.flatnonzero(blocks == block)
            starts = np.array(self._before(block * BLOCK))
            stops = np.array(self._before(min((block + 1) * BLOCK, self.epoch_samples)))
            ends = np.cumsum(stops - starts)
            found = ends.searchsorted(offsets[chosen], side="right")
            sources[chosen] = found
            inside_source = starts[found] + offsets[chosen] - (ends - (stops - starts))[found]
            numbers[chosen] = epochs[chosen] * np.array(self._quotas)[found] + inside_source
        return sources, numbers

    def _apportion(self, places: int) -> tuple[int, ...]:
        """Returns how many of the first `places` places of an epoch fall to each source, exactly `places` in all."""
        low, high = 0, _TIME  # the least time by which so many items have come
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
        """Returns how many items of each source come by `time`, where item k of a source with pace m and phase f comes at k · m + f."""
        each = zip(self._paces, self._phases, self._quotas, strict=True)
        return [min(max((time - phase + pace) // pace, 0), quota) if pace else 0 for pace, phase, quota in each]

    def __reduce__(self) -> tuple[object, ...]:
        again = functools.partial(MixedOrder, num_samples=self._num_samples, num_shards=self._num_shards, seed=self._seed)
        return again, (self._orders, self._quotas)
