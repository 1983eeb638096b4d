"""Groups of consecutive shards of which an epoch reads only some: those whose rates are all low need not be read every time.

Of a group with rate sums S_s, in all L = Σ S_s, an epoch reads K shards: lay the sums end to end in a keyed random order, and mark the line
systematically at distances of L / K; shard s is met with probability K · S_s / L. Each of the K then lays L / K on the line of the draw of
rows (drawing.py) in place of its own sum, its rows' rates stretched by L / (K · S_s), and the others lay nothing. So

    rate of a row = (K · S_s / L) · rate · L / (K · S_s)        as it was, to within a unit of 2⁻²⁴
    samples       = Σ L                                         the epoch has exactly its length

K is the least for which no rate is stretched above 1; a shard with a rate of 1 or more is a group by itself, read in every epoch as it is.
The nearer the rates of a shard to its greatest, the fewer shards are read: that is what packing a pool by gain is for. K of many, not one
of a few, since little is lost so to whole numbers: a shard with a greatest rate of 0.6 is read in about 60 % of the epochs, not in all.

Letters: S shards, G groups, R = Σ K shards read in an epoch. Sums are in units of 2⁻²⁴.
"""

import numpy as np
import numpy.typing as npt

from ..counters import key, mix
from .rates import ONE, Groups

Ids = npt.NDArray[np.int64]

_MARKS, _LINE = 1, 2  # what a key is for, so that no two uses share their draws

_LONGEST = 128  # shards of a group: K is a whole number, and what that costs falls as K grows
_PRODUCT_BITS = 62


def form_groups(sums: Ids, greatest: Ids, sizes: Ids) -> Groups:
    """Returns the groups with the least reading, among all that have at most 128 shards with rates above 0.

    Args:
        sums, greatest: int64[S] sum and greatest of the rates of each shard.
        sizes: int64[S] what reading each shard costs, in any unit.
    """
    assert sums.max(initial=0) < 1 << 47, "8 million samples of a shard in an epoch; products of a group's sum and K stay below 2⁶¹"
    taken = np.flatnonzero(sums)
    assert len(taken), "an epoch takes a sample at least"
    # What a shard can lay down before a rate of its rows is stretched too far; Python's integers, as the product may need 80 bits.
    pairs = zip(sums[taken].tolist(), greatest[taken].tolist(), strict=True)
    bearable = np.array([max(ONE, top) * total // top for total, top in pairs], np.int64)
    lengths, reads = _partition(sums[taken], bearable, sizes[taken])
    firsts = np.concatenate([[0], taken[np.cumsum(lengths)[:-1]]])  # shards without a sum go with those before them
    return np.stack([np.diff([*firsts, len(sums)]), reads], axis=1).astype(np.int32)


def laid_down(sums: Ids, groups: Groups, draw_key: np.uint64) -> Ids:
    """Returns int64[S] what every shard lays on the line of rows in one epoch: L / K, in whole units that add up to L, or 0."""
    num_shards, reads = len(sums), groups[:, 1].astype(np.int64)
    group_of = np.repeat(np.arange(len(groups)), groups[:, 0])
    order = np.lexsort((mix(key(int(draw_key), _LINE) ^ np.arange(num_shards).astype(np.uint64)), group_of))
    ends = np.cumsum(sums[order])
    group_ends = ends[np.cumsum(groups[:, 0]) - 1]
    totals = np.diff(group_ends, prepend=0)
    phases = mix(key(int(draw_key), _MARKS) ^ np.arange(len(groups)).astype(np.uint64)) % totals.astype(np.uint64)
    begin_R, total_R, phase_R, reads_R = np.repeat([group_ends - totals, totals, phases.astype(np.int64), reads], reads, axis=1)
    number_R = np.arange(len(reads_R)) - np.repeat(np.cumsum(reads) - reads, reads)
    marks_R = begin_R + (phase_R + number_R * total_R) // reads_R
    laid = np.zeros_like(sums)
    laid[order[ends.searchsorted(marks_R, side="right")]] = (number_R + 1) * total_R // reads_R - number_R * total_R // reads_R
    return laid


def stretched(borders: Ids, total: int) -> Ids:
    """Returns ⌊borders · total / last border⌋, exactly, for increasing borders from 0: the last is then `total`.

    The product may need more than 64 bits, so it is divided as by hand, a few bits of `total` at a time from the top.
    """
    own = int(borders[-1])
    bits = _PRODUCT_BITS - own.bit_length()
    whole, rest = divmod(total, own)
    quotients, remainders = np.zeros_like(borders), np.zeros_like(borders)
    for shift in range(-(-rest.bit_length() // bits) * bits - bits, -1, -bits):
        digit = (rest >> shift) & ((1 << bits) - 1)
        more, remainders = np.divmod((remainders << bits) + borders * digit, own)
        quotients = (quotients << bits) + more
    return quotients + borders * whole


def shares_read(sums: Ids, groups: Groups | None) -> npt.NDArray[np.float64]:
    """Returns float64[S] the share of epochs that take a sample of each shard; without groups, only a sum below 1 is ever passed over."""
    if groups is None:
        return np.minimum(sums / ONE, 1.0)
    firsts = np.cumsum(groups[:, 0]) - groups[:, 0]
    laid = np.repeat(np.add.reduceat(sums, firsts) / groups[:, 1], groups[:, 0])
    return sums / laid * np.minimum(laid / ONE, 1.0)


def _partition(sums: Ids, bearable: Ids, sizes: Ids) -> tuple[Ids, Ids]:
    """Returns (shards, K) of the groups with the least Σ K · (Σ S_s · size_s) / L: dynamic programming over where the last one begins."""
    costs = sums * sizes.astype(np.float64)
    least, begins, reads = [0.0], list[int](), list[int]()
    for stop in range(1, len(sums) + 1):
        behind = slice(max(stop - _LONGEST, 0), stop)
        total = np.cumsum(sums[behind][::-1])
        most = np.minimum.accumulate(bearable[behind][::-1])
        needed = -(-total // most)
        # A shard must not take two marks: its sum lies below the spacing, of which rounding may cut a unit.
        apart = (needed == 1) | (needed <= total // (np.maximum.accumulate(sums[behind][::-1]) + 1))
        cost = np.where(apart, needed * np.cumsum(costs[behind][::-1]) / total, np.inf) + np.array(least[behind][::-1])
        chosen = int(cost.argmin())
        least.append(float(cost[chosen]))
        begins.append(stop - 1 - chosen)
        reads.append(int(needed[chosen]))
    stops, stop = list[int](), len(sums)
    while stop:
        stops.append(stop)
        stop = begins[stop - 1]
    last = np.array(stops[::-1], np.int64)
    return np.diff(last, prepend=0), np.array(reads, np.int64)[last - 1]
