"""Two phases of several shard folders: all of them draw by their first rates in one epoch, and by their second in the next.

A single folder's order knows its two phases itself (`Order`). In a mixture each phase has quotas of its own, since what one folder gives to
it is another share of that folder than of the next; so each is a `MixedOrder` over every second epoch of the folders' orders.
"""

from collections.abc import Sequence

import numpy as np

from .drawing import Ids
from .order import Order, SampleOrder, Visits


class Phase:
    """The epochs `number`, `number` + 2, … of a folder's order, as an order."""

    def __init__(self, order: Order, number: int) -> None:
        assert number in (0, 1)
        first, last = order.lengths[0], order.lengths[-1]
        self._order, self._number, self._period = order, number, first + last
        self._begin, self._length = (0, first) if number == 0 else (first, last)

    @property
    def epoch_samples(self) -> int:
        """Samples an epoch."""
        return self._length

    def boundary(self, position: int) -> int:
        """Returns the first position ≥ `position` at which an epoch begins."""
        return -(-position // self._length) * self._length

    def at(self, positions: Ids) -> Visits:
        """Returns the visits at any positions, int64[n], each from 0."""
        epochs, inside = np.divmod(positions, self._length)
        return self._order.at(epochs * self._period + self._begin + inside)

    def take(self, start: int, stop: int) -> Visits:
        """Returns the visits at the positions start ≤ p < stop."""
        return self.at(np.arange(start, stop, dtype=np.int64))

    def shards_in(self, first: int, last: int, num_ahead: int) -> list[int]:
        """Returns the ordinals of the shards in use at the positions first ≤ p ≤ last, then the next `num_ahead`, of whatever phase."""
        shards = list[int]()
        for epoch in range(first // self._length, last // self._length + 1):
            begin, offset = epoch * self._length, epoch * self._period + self._begin
            is_last = epoch == last // self._length
            ends = max(first - begin, 0), last - begin if is_last else self._length - 1
            shards += self._order.shards_in(offset + ends[0], offset + ends[1], num_ahead if is_last else 0)
        return list(dict.fromkeys(shards))


class AlternatingOrder:
    """An epoch of one order, then one of the other, and so on.

    Args:
        phases: the two, each with an epoch of at least one sample.
        coupled: whether an epoch of each belong together, so that nothing else may begin between them.
    """

    def __init__(self, phases: Sequence[SampleOrder], *, coupled: bool) -> None:
        self._phases, self._coupled = tuple(phases), coupled
        self._lengths = tuple(phase.epoch_samples for phase in phases)
        assert len(phases) == 2
        assert min(self._lengths) > 0

    @property
    def epoch_samples(self) -> int:
        """Samples an epoch: the mean of the two, rounded up."""
        return -(-sum(self._lengths) // 2)

    def boundary(self, position: int) -> int:
        """Returns the first position ≥ `position` at which an epoch begins; of coupled ones, a pair of them."""
        periods, inside = divmod(position, sum(self._lengths))
        begins = (0, *(() if self._coupled else self._lengths[:1]), sum(self._lengths))
        return periods * sum(self._lengths) + next(begin for begin in begins if begin >= inside)

    def at(self, positions: Ids) -> Visits:
        """Returns the visits at any global positions, int64[n], each from 0."""
        periods, inside = np.divmod(positions, sum(self._lengths))
        ids, keys = np.empty(len(positions), np.int64), np.empty(len(positions), np.uint64)
        for number, (phase, length) in enumerate(zip(self._phases, self._lengths, strict=True)):
            chosen = (inside >= self._lengths[0]) == bool(number)
            ids[chosen], keys[chosen] = phase.at(periods[chosen] * length + inside[chosen] - number * self._lengths[0])
        return Visits(ids, keys)

    def take(self, start: int, stop: int) -> Visits:
        """Returns the visits at the global positions start ≤ p < stop."""
        return self.at(np.arange(start, stop, dtype=np.int64))

    def shards_in(self, first: int, last: int, num_ahead: int) -> list[int]:
        """Returns the ordinals of the shards in use at the positions first ≤ p ≤ last, then of the next `num_ahead` of each source."""
        (begin, inside), (end, last_inside) = self._place(first), self._place(last)
        shards = list[int]()
        for epoch in range(begin, end + 1):
            period, number = divmod(epoch, 2)
            start, stop = inside if epoch == begin else 0, last_inside if epoch == end else self._lengths[number] - 1
            before = period * self._lengths[number]
            shards += self._phases[number].shards_in(before + start, before + stop, num_ahead if epoch == end else 0)
        return list(dict.fromkeys(shards))

    def _place(self, position: int) -> tuple[int, int]:
        """Returns (epoch, position in it)."""
        period, inside = divmod(position, sum(self._lengths))
        late = inside >= self._lengths[0]
        return 2 * period + late, inside - self._lengths[0] * late
