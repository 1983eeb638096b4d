"""Which rows of each shard an epoch takes, and how often: every row once, drawn by rates, or what such a draw left over.

A draw by rates is systematic sampling (Madow, 1949) in a keyed random order: of the shards, and of the rows in each. Lay the rates r of
all rows end to end on a line in that order, and mark the line at U, U + 1, U + 2, …, with one U in [0, 1) per draw: a row is taken as
often as marks fall on it, ⌊r⌋ or ⌈r⌉ times, r times on average. As the rates add up to a whole number E, a draw takes exactly E rows; and
how many a shard gives follows from the sums of the shards' rates, so no process ever holds or hashes the rows of an epoch.

Where shards are grouped (groups.py), only some lie on the line in an epoch, each for others of its group as well.

Letters: S shards, n rows of a shard, E rows drawn. An item is a row as often as it is taken: a shard has `counts[shard]` items.
"""

import functools
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ...cli.errors import DataError
from ..counters import key, mix, permute
from .groups import laid_down, stretched
from .rates import ONE, Rates

Ids = npt.NDArray[np.int64]

_MARKS, _LINE, _ROWS, _AFFINE, _GROUPS = 1, 2, 3, 4, 5  # what a key is for, so that no two uses share their draws


class Drawing(Protocol):
    """The items of every shard in one epoch."""

    counts: Ids
    """int64[S] items per shard."""

    def rows(self, shards: Ids, items: Ids) -> tuple[Ids, Ids]:
        """Returns (rows in their shards, how often the same row was taken before), int64[N] each, of the items numbered `items`."""


class EveryRow:
    """Every row once: item k of a shard is row π(k) of a keyed permutation of it."""

    def __init__(self, shard_counts: Ids, draw_key: np.uint64) -> None:
        self.counts = shard_counts
        self._key = mix(np.array([draw_key]) ^ np.uint64(_ROWS))

    def rows(self, shards: Ids, items: Ids) -> tuple[Ids, Ids]:
        """Returns (rows, zeros)."""
        return permute(items, self.counts[shards], mix(self._key ^ shards.astype(np.uint64))), np.zeros_like(items)


class DrawnRows:
    """Rows drawn by rates; `num_kept` shards' tables are kept at a time, 12 bytes a row."""

    def __init__(self, rates: Rates, draw_key: np.uint64, num_kept: int) -> None:
        self._rates, self._key = rates, draw_key
        sums, num_shards = np.diff(rates.starts), len(rates.starts) - 1
        line = permute(np.arange(num_shards), num_shards, key(int(draw_key), _LINE))
        laid = sums if rates.groups is None else laid_down(sums, rates.groups, key(int(draw_key), _GROUPS))
        ends = np.cumsum(laid[line]) + int(key(int(draw_key), _MARKS)) % ONE
        starts = np.empty_like(laid)
        starts[line] = ends - laid[line]
        self.counts: Ids = (starts + laid) // ONE - starts // ONE
        self._sums, self._laid = sums, laid
        self._offsets = starts % ONE  # the offset: what of each shard's first unit lies behind a mark already
        self._table = functools.lru_cache(maxsize=num_kept)(self._make_table)

    def rows(self, shards: Ids, items: Ids) -> tuple[Ids, Ids]:
        """Returns (rows, copies); a copy above 0 is a further visit of a row whose rate is above 1."""
        by_shard = shards.argsort(kind="stable")
        wanted = (items[by_shard] + 1) * ONE
        found, before = np.empty_like(items), np.empty_like(items)
        for shard, start, stop in _runs(shards[by_shard]):
            order, borders = self._table(shard)
            places = borders.searchsorted(wanted[start:stop])
            places -= 1
            found[start:stop] = order.take(places)
            borders.take(places, out=before[start:stop], mode="clip")  # with `out`, another mode would copy; no place is outside
        rows, copies = np.empty_like(items), np.empty_like(items)
        rows[by_shard] = found
        copies[by_shard] = wanted // ONE - 1 - before // ONE
        return rows, copies

    def left(self, shard: int) -> Ids:
        """Returns the rows of a shard that were not drawn, in the draw's order."""
        order, borders = self._table(shard)
        rows: Ids = order[np.diff(borders // ONE) == 0].astype(np.int64)
        return rows

    def _make_table(self, shard: int) -> tuple[npt.NDArray[np.int32], Ids]:
        """Returns (int32[n] rows in the order of the line, int64[n + 1] borders of their stretches), from the shard's offset on."""
        rates = self._rates.of_shard(shard)
        order = _random_order(len(rates), key(int(self._key), _AFFINE, shard))
        borders = np.zeros(len(rates) + 1, np.int64)
        np.cumsum(rates[order], out=borders[1:])
        if borders[-1] != self._sums[shard]:
            raise DataError(f"{self._rates.folder}: damaged: the rates of shard {shard} do not add up; remove the folder to make it again")
        if self._laid[shard] != self._sums[shard]:
            borders = stretched(borders, int(self._laid[shard]))
        return order, borders + self._offsets[shard]


class LeftRows:
    """What a draw left over, every row once: with the draw, each row is seen exactly once. Rates must not exceed 1.

    Args:
        members: 1 for the rows that count, 0 for the others, of rate 0, which stay out; None: all count.
    """

    def __init__(self, shard_counts: Ids, drawn: DrawnRows, num_kept: int, members: Rates | None = None) -> None:
        self.counts: Ids = (shard_counts if members is None else np.diff(members.starts) // ONE) - drawn.counts
        self._drawn, self._members = drawn, members
        self._left = functools.lru_cache(maxsize=num_kept)(drawn.left if members is None else self._members_left)

    def rows(self, shards: Ids, items: Ids) -> tuple[Ids, Ids]:
        """Returns (rows, zeros)."""
        by_shard = shards.argsort(kind="stable")
        rows = np.empty_like(items)
        for shard, start, stop in _runs(shards[by_shard]):
            chosen = by_shard[start:stop]
            rows[chosen] = self._left(shard)[items[chosen]]
        return rows, np.zeros_like(items)

    def _members_left(self, shard: int) -> Ids:
        assert self._members is not None
        left = self._drawn.left(shard)
        rows: Ids = left[self._members.of_shard(shard)[left] > 0]
        if len(rows) != self.counts[shard]:
            folder = self._members.folder
            raise DataError(f"{folder}: damaged: the members of shard {shard} do not add up; remove the folder to make it again")
        return rows


def _runs(shards: Ids) -> Iterator[tuple[int, int, int]]:
    """Yields (shard, start, stop) of every run of a sorted column."""
    borders = np.flatnonzero(np.diff(shards)) + 1
    starts, stops = [0, *borders.tolist()], [*borders.tolist(), len(shards)]
    if len(shards):
        yield from zip(shards[starts].tolist(), starts, stops, strict=True)


def _random_order(size: int, stream_key: np.uint64) -> npt.NDArray[np.int32]:
    """Returns the numbers below `size` in the order a · i + b mod p, i = 0, 1, …, for the least prime p ≥ size and keyed a, b.

    Any two of them stand in every pair of places with nearly the same probability, at a few nanoseconds a row.
    """
    prime = _prime_from(size)
    factor, shift = (int(word) for word in mix(np.array([stream_key, stream_key ^ np.uint64(1)])) >> np.uint64(1))
    walk = (np.arange(prime, dtype=np.int64) * (1 + factor % max(prime - 1, 1)) + shift % prime) % prime
    return walk[walk < size].astype(np.int32)


@functools.lru_cache(maxsize=4096)
def _prime_from(number: int) -> int:
    candidate = max(number, 2)
    while any(candidate % divisor == 0 for divisor in range(2, int(candidate**0.5) + 1)):
        candidate += 1
    return candidate
