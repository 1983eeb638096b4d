"""One epoch's order, without any array of the epoch.

The shards that give items are put in a keyed random order. Each deals its items into `window` hands, and slot t of the epoch mixes
hand 0 of shard t, hand 1 of the shard before, …, hand window - 1 of the shard window - 1 before, round the end. So `window` shards are
read at any time, one leaves and one enters per slot, every shard is spread evenly over `window` slots, and a slot is about one shard
long. Within a slot the items are permuted. Position p is found in O(log shards), and reading ahead is one shard per slot. Where there
are no more shards than the window, the epoch is one slot of all of them: a full shuffle.

Letters: S shards, V shards that give items, W window, N positions asked for.
"""

import numpy as np
import numpy.typing as npt

from ..counters import key, mix, permute
from .drawing import Drawing, Ids

_SHARDS, _HANDS, _SLOTS = 1, 2, 3  # what a key is for, so that no two uses share their draws

_CHUNK = 1 << 20  # hands looked at at a time


class EpochPlan:
    """The order of one epoch.

    Args:
        drawing: the items of every shard.
        first_ids: int64[S] sample id of each shard's first row.
        window: shards interleaved at a time, at least 1.
        epoch_key: what the order is drawn from.
    """

    def __init__(self, drawing: Drawing, first_ids: Ids, window: int, epoch_key: np.uint64) -> None:
        assert window >= 1
        self._drawing, self._first_ids = drawing, first_ids
        giving = np.flatnonzero(drawing.counts)
        self._visited: Ids = giving[permute(np.arange(len(giving)), len(giving), key(int(epoch_key), _SHARDS))]
        self._items: Ids = drawing.counts[self._visited]
        self._span = min(window, len(giving))
        self._num_hands = window if window < len(giving) else 1
        turns = mix(key(int(epoch_key), _HANDS) ^ self._visited.astype(np.uint64)) % np.uint64(self._num_hands)
        self._turns: Ids = turns.astype(np.int64)  # so that shards of few items do not all deal to hand 0
        self._starts: Ids = np.concatenate([[0], np.cumsum(self._slot_sizes())]).astype(np.int64)
        self._slot_key = key(int(epoch_key), _SLOTS)

    @property
    def num_items(self) -> int:
        """Positions of the epoch."""
        return int(self._starts[-1])

    def at(self, positions: Ids) -> tuple[Ids, Ids]:
        """Returns (sample ids, copies) at any positions 0 ≤ p < num_items, int64[N] each; `copies` as `Drawing.rows` has them."""
        size = max(_CHUNK // max(self._span, 1), 1)  # each position may lie in a slot of its own, of `span` hands
        chunks = [self._at(positions[start : start + size]) for start in range(0, len(positions), size)]
        empty = np.zeros(0, np.int64)
        return np.concatenate([empty, *(ids for ids, _ in chunks)]), np.concatenate([empty, *(copies for _, copies in chunks)])

    def shards_in(self, first: int, last: int, num_ahead: int) -> list[int]:
        """Returns the ordinals of the shards in use at the positions first ≤ p ≤ last, then of the next `num_ahead` in this epoch."""
        slots = (self._starts.searchsorted([first, last], side="right") - 1).tolist()
        used = np.arange(slots[0] - self._span + 1, min(slots[1] + 1 + num_ahead, len(self._visited)))
        shards: list[int] = self._visited[used % len(self._visited)].tolist()
        return list(dict.fromkeys(shards))

    def _at(self, positions: Ids) -> tuple[Ids, Ids]:
        slots = self._starts.searchsorted(positions, side="right") - 1
        starts = self._starts[slots]
        keys = mix(self._slot_key ^ slots.astype(np.uint64))
        shuffled = starts + permute(positions - starts, self._starts[slots + 1] - starts, keys)
        used = np.unique(slots)
        span = np.arange(self._span)
        places_UW = (used[:, None] - span) % len(self._visited)
        firsts_UW, sizes_UW = self._hand(places_UW, span % self._num_hands)
        ends = (self._starts[used][:, None] + np.cumsum(sizes_UW, axis=1)).ravel()
        found = ends.searchsorted(shuffled, side="right")
        number = shuffled - (ends - sizes_UW.ravel())[found]
        items = firsts_UW.ravel()[found] + number * self._num_hands
        shards = self._visited[places_UW.ravel()[found]]
        rows, copies = self._drawing.rows(shards, items)
        return self._first_ids[shards] + rows, copies

    def _hand(self, places: Ids, hand: int | npt.NDArray[np.int64]) -> tuple[Ids, Ids]:
        """Returns (first item, number of items) of a hand of the shards visited at `places`: items of equal remainder by the window.

        Dealing one by one sets the visits of a row that is taken several times apart: neighbouring items go to different slots.
        """
        firsts = (hand - self._turns[places]) % self._num_hands
        return firsts, (self._items[places] - firsts + self._num_hands - 1) // self._num_hands

    def _slot_sizes(self) -> Ids:
        """Returns the items of every slot, in O(shards): hand j of the shard at place v falls into slot v + j, round the end."""
        num_slots, num_hands = len(self._items), self._num_hands
        if num_hands == 1:
            return np.array([self._items.sum()]) if self._span == num_slots else self._items
        each, rest = np.divmod(self._items, num_hands)
        changes = np.zeros(2 * num_slots, np.int64)  # of the slot size from one slot to the next, not yet round the end
        places = np.arange(num_slots)
        stops = self._turns + rest  # the hands turn ≤ j < turn + rest, round the window, have one item more
        wrapped = np.maximum(stops - num_hands, 0)
        for starts, ends, amounts in (
            (places, places + num_hands, each),
            (places + self._turns, places + np.minimum(stops, num_hands), 1),
            (places, places + wrapped, 1),
        ):
            np.add.at(changes, starts, amounts)
            np.subtract.at(changes, ends, amounts)
        sizes: Ids = np.cumsum(changes).reshape(2, num_slots).sum(0)
        return sizes
