"""Randomness without state: every draw is a hash of what it is for, so any process can make it again, in any order.

The generator is SplitMix64's finaliser (Steele, Lea & Flood, OOPSLA 2014) applied to keyed counters; the permutation is the
generalised Feistel cipher on Z_a × Z_b, a · b ≥ n, with cycle walking (Black & Rogaway, CT-RSA 2002): a bijection of [0, n) that needs
no array. As a · b is hardly more than n, few positions walk.
"""

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = 6  # half rounds, three of each side
_MORE_ROUNDS = 8  # for sizes below _LARGE, where pairs of values are measurably off after three (χ² tests)
_LARGE = 512
_MIN_SIDE = 4  # below, they reach too few of the permutations


def mix(words: Words) -> Words:
    """Returns SplitMix64's output for each uint64 state: a bijection of the 64-bit words that passes for random."""
    with np.errstate(over="ignore"):
        z = words + _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def key(*parts: int) -> np.uint64:
    """Returns a 64-bit key for a tuple of integers; the order of the parts matters."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        state = mix(state ^ np.uint64(part & 0xFFFFFFFFFFFFFFFF))
    return np.uint64(state[0])


def uniforms(stream_key: np.uint64 | Words, counters: npt.NDArray[np.int64], num_draws: int) -> npt.NDArray[np.float64]:
    """Returns float64[N, num_draws] in [0, 1), a function of (key, counter, column) alone; one key for all or uint64[N]."""
    base = mix(counters.astype(np.uint64) ^ stream_key)
    columns = mix(np.arange(1, num_draws + 1, dtype=np.uint64))
    draws = mix(base[:, None] ^ columns) >> np.uint64(11)
    return draws.astype(np.float64) * 2.0**-53


def permute(positions: Counts, size: int | Counts, stream_key: np.uint64 | Words) -> Counts:
    """Returns π(positions) for the keyed permutation π of [0, size).

    Args:
        positions: int64[N], each in [0, size).
        size: one for all, or int64[N]; stream_key: one for all, or uint64[N]. Positions with equal size and key share a permutation.
    """
    sizes, keys = np.broadcast_to(size, positions.shape), np.broadcast_to(stream_key, positions.shape)
    words = np.zeros(len(positions), np.uint64)
    pending = np.flatnonzero(sizes > 1)
    words[pending] = positions[pending].astype(np.uint64)
    while len(pending):
        size, pending_keys = sizes[pending], keys[pending]
        side, other = _sides(size)
        walked = _feistel(words[pending], side, other, pending_keys, range(_ROUNDS))
        small = np.flatnonzero(size < _LARGE)
        if len(small):
            more = range(_ROUNDS, _ROUNDS + _MORE_ROUNDS)
            walked[small] = _feistel(walked[small], side[small], other[small], pending_keys[small], more)
        words[pending] = walked
        pending = pending[walked >= size.astype(np.uint64)]
    return words.astype(np.int64)


def _sides(sizes: Counts) -> tuple[Words, Words]:
    """Returns (a, b), about equal, with a · b ≥ size, hardly more: the two halves of a position are its quotient and remainder by b."""
    side = np.maximum(np.ceil(np.sqrt(sizes)), _MIN_SIDE)
    other = np.maximum(np.ceil(sizes / side), _MIN_SIDE)
    return side.astype(np.uint64), other.astype(np.uint64)


def _feistel(words: Words, side: Words, other: Words, keys: Words, rounds: range) -> Words:
    high, low = words // other, words % other
    for number in rounds[::2]:
        high = (high + (mix(low ^ keys ^ np.uint64(number << 56)) >> np.uint64(1))) % side
        low = (low + (mix(high ^ keys ^ np.uint64((number + 1) << 56)) >> np.uint64(1))) % other
    return high * other + low
