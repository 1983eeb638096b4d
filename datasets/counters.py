"""Randomness without state: every draw is a hash of what it is for, so any process can make it again, in any order.

The generator is SplitMix64's finaliser (Steele, Lea & Flood, OOPSLA 2014) applied to keyed counters; the permutation is a
Feistel network on ⌈log2 n⌉ bits with cycle walking (Black & Rogaway, CT-RSA 2002): a bijection of [0, n) that needs no array.
"""

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = 6  # half rounds, three of each side
_MIN_BITS = 4  # below, three rounds reach too few of the permutations


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


def permute(positions: npt.NDArray[np.int64], size: int, stream_key: np.uint64) -> npt.NDArray[np.int64]:
    """Returns π(positions) for the keyed permutation π of [0, size); positions must lie in that range."""
    if size <= 1:
        return positions.copy()
    bits = max(_MIN_BITS, (size - 1).bit_length())
    words = positions.astype(np.uint64)
    pending = np.arange(len(words))
    while len(pending):
        walked = _feistel(words[pending], bits, stream_key)
        words[pending] = walked
        pending = pending[walked >= size]
    return words.astype(np.int64)


def _feistel(words: Words, bits: int, stream_key: np.uint64) -> Words:
    low_bits = np.uint64(bits // 2)
    low_mask = np.uint64((1 << (bits // 2)) - 1)
    high_mask = np.uint64((1 << (bits - bits // 2)) - 1)
    high, low = words >> low_bits, words & low_mask
    for number in range(0, _ROUNDS, 2):
        high = high ^ (mix(low ^ stream_key ^ np.uint64(number << 56)) & high_mask)
        low = low ^ (mix(high ^ stream_key ^ np.uint64((number + 1) << 56)) & low_mask)
    return (high << low_bits) | low
