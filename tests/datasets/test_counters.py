"""Stateless randomness against what randomness must look like."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bamboo.datasets.counters import key, mix, permute, uniforms


def test_mix_is_splitmix64() -> None:
    """Against the published outputs of SplitMix64 seeded with 1234567 (Rosetta Code's reference values)."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        states = np.uint64(1234567) + golden * np.arange(5, dtype=np.uint64)
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert mix(states).tolist() == expected


@given(size=st.integers(1, 3000), seed=st.integers(0, 2**63 - 1))
def test_permute_is_a_bijection(size: int, seed: int) -> None:
    """Every value of [0, size) exactly once, for any size and key; any part of it alone gives the same values."""
    whole = permute(np.arange(size), size, key(seed))
    assert np.array_equal(np.sort(whole), np.arange(size))
    assert np.array_equal(permute(np.arange(size // 3, size // 2), size, key(seed)), whole[size // 3 : size // 2])


def test_permute_puts_every_value_everywhere() -> None:
    """χ² of (position, value) pairs over 6,000 keys and 12 values: below its 1 - 10⁻⁴ quantile at 121 degrees of freedom (186)."""
    counts = np.zeros((12, 12))
    for seed in range(6000):
        counts[np.arange(12), permute(np.arange(12), 12, key(seed, 7))] += 1
    assert ((counts - 500) ** 2 / 500).sum() < 186


@pytest.mark.parametrize("size", [9, 16, 36, 64, 100, 1100])
def test_permute_leaves_no_trace_between_values(size: int) -> None:
    """χ² of π(i + side) - π(i), where side is what a Feistel half spans, over many keys: below twice its degrees of freedom."""
    side, num_keys = int(np.ceil(size**0.5)), min(400_000 // size, 8000)
    numbers, counts = np.arange(size), np.zeros(size)
    for seed in range(num_keys):
        values = permute(numbers, size, key(11, seed))
        counts += np.bincount((values[(numbers + side) % size] - values) % size, minlength=size)
    expected = num_keys * size / (size - 1)
    assert counts[0] == 0
    assert ((counts[1:] - expected) ** 2 / expected).sum() < 2 * (size - 2)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_permute_reaches_all_small_permutations(size: int) -> None:
    """Every one of size! orders occurs within 3,000 keys."""
    orders = {tuple(permute(np.arange(size), size, key(seed)).tolist()) for seed in range(3000)}
    assert len(orders) == {2: 2, 3: 6, 5: 120}[size]


def test_uniforms_are_uniform_and_their_own() -> None:
    """Mean, variance and correlations of 200,000 draws within 5 standard errors of U(0, 1); equal for any grouping of counters."""
    counters = np.arange(100_000)
    draws = uniforms(key(3), counters, 2)
    assert draws.shape == (100_000, 2)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert np.abs(draws.mean(0) - 0.5).max() < 5 * (1 / 12 / 1e5) ** 0.5
    assert np.abs(draws.var(0) - 1 / 12).max() < 5 * (1 / 180 / 1e5) ** 0.5
    assert abs(np.corrcoef(draws.T)[0, 1]) < 5 / 1e5**0.5
    assert abs(np.corrcoef(draws[1:, 0], draws[:-1, 0])[0, 1]) < 5 / 1e5**0.5
    assert np.array_equal(uniforms(key(3), counters[500:510], 2), draws[500:510])
    assert not np.array_equal(uniforms(key(4), counters[:10], 2), draws[:10])


def test_keys_tell_all_parts_apart() -> None:
    """Order, value and number of parts count; negative parts are allowed."""
    keys = [key(1, 2), key(2, 1), key(1, 2, 0), key(12), key(-1), key(0), key(0, 0)]
    assert len({int(word) for word in keys}) == len(keys)
