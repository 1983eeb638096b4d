"""The plan: each sample once an epoch, in an order that depends on nothing but shards, seed and epoch."""

import itertools
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bamboo.datasets.plan.order import PLAN_VERSION, Order, plan
from bamboo.datasets.plan.slices import rank_slice

GOLDEN = Path(__file__).parent / "golden" / "order.json"
COUNTS = st.lists(st.one_of(st.just(0), st.just(1), st.integers(0, 60)), min_size=1, max_size=25).filter(lambda counts: sum(counts) > 0)


def counts_of(counts: list[int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Returns shard counts as the plan takes them."""
    return np.array(counts, np.int64)


@given(counts=COUNTS, seed=st.integers(-5, 5), epoch=st.integers(0, 3), window=st.integers(1, 30))
def test_every_sample_once_an_epoch(counts: list[int], seed: int, epoch: int, window: int) -> None:
    """For random shard sizes, empty and one-sample shards and any window: a permutation of the samples."""
    order = plan(counts_of(counts), seed=seed, epoch=epoch, window=window)
    assert order.num_samples == sum(counts)
    assert np.array_equal(np.sort(order.take(0, order.num_samples)), np.arange(sum(counts)))


@given(counts=COUNTS, cuts=st.lists(st.integers(0, 10**6), max_size=6), window=st.integers(1, 30))
def test_any_cut_of_the_order_is_the_order(counts: list[int], cuts: list[int], window: int) -> None:
    """`take` in pieces, over two and a half epochs and from a pickled copy, against `take` at once."""
    order = Order(counts_of(counts), seed=1, window=window)
    stop = sum(counts) * 5 // 2 + 1
    borders = [0, *sorted(cut % stop for cut in cuts), stop]
    copy = pickle.loads(pickle.dumps(order))
    pieces = [copy.take(*border) for border in itertools.pairwise(borders)]
    ids, epochs = order.take(0, stop)
    assert np.array_equal(np.concatenate([piece[0] for piece in pieces]), ids)
    assert np.array_equal(np.concatenate([piece[1] for piece in pieces]), epochs)
    assert np.array_equal(epochs, np.arange(stop) // sum(counts))


def test_seeds_and_epochs_differ() -> None:
    """Six (seed, epoch) pairs: six orders."""
    counts = counts_of([20] * 10)
    orders = {tuple(plan(counts, seed=seed, epoch=epoch, window=4).take(0, 200).tolist()) for seed in range(3) for epoch in range(2)}
    assert len(orders) == 6


def test_reading_stays_in_the_window() -> None:
    """Any stretch of an epoch touches at most 2 · window shards, one window's when it does not cross a border."""
    counts = counts_of([50] * 40)
    shard_of = np.repeat(np.arange(40), 50)
    ids = plan(counts, seed=0, epoch=0, window=4).take(0, 2000)
    for window in range(10):
        assert len(np.unique(shard_of[ids[window * 200 : (window + 1) * 200]])) == 4
    assert max(len(np.unique(shard_of[ids[start : start + 64]])) for start in range(0, 1900, 7)) <= 8


def test_order_is_shuffled() -> None:
    """Within one window, position and id are uncorrelated (|r| < 5 / √n)."""
    ids = plan(counts_of([100] * 50), seed=0, epoch=0, window=50).take(0, 5000)
    assert abs(np.corrcoef(np.arange(5000), ids)[0, 1]) < 5 / 5000**0.5


def test_weights_are_refused_until_they_mean_something() -> None:
    """A weight column is an error, never ignored."""
    with pytest.raises(NotImplementedError, match="weights"):
        plan(counts_of([3]), np.ones(3), seed=0, epoch=0, window=1)  # type: ignore[arg-type]  # the point of the test


@given(batch=st.integers(1, 50), world_size=st.integers(1, 9), unit=st.sampled_from([1, 2]))
def test_rank_slices_cover_the_batch(batch: int, world_size: int, unit: int) -> None:
    """Disjoint, in order, whole units, and even up to one unit."""
    slices = [rank_slice(batch * unit, rank, world_size, unit) for rank in range(world_size)]
    assert [place for places in slices for place in places] == list(range(batch * unit))
    assert all(places.start % unit == 0 for places in slices)
    assert max(map(len, slices)) - min(map(len, slices)) <= unit


def test_golden_order() -> None:
    """The order of version 1, pinned: a change is breaking, raises PLAN_VERSION and is named in CHANGELOG.md."""
    cases = [([5, 0, 3, 1, 7], 0, 0, 2), ([5, 0, 3, 1, 7], 0, 1, 2), ([4] * 6, 123, 2, 3), ([30], 7, 0, 1), ([9] * 5, -1, 4, 100)]
    actual = {
        "plan_version": PLAN_VERSION,
        "orders": [
            {"counts": counts, "seed": seed, "epoch": epoch, "window": window, "ids": _ids(counts, seed, epoch, window)}
            for counts, seed, epoch, window in cases
        ],
    }
    if os.environ.get("BAMBOO_UPDATE_GOLDEN"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(actual) + "\n")
    assert actual == json.loads(GOLDEN.read_text())


def _ids(counts: list[int], seed: int, epoch: int, window: int) -> list[int]:
    ids: list[int] = plan(counts_of(counts), seed=seed, epoch=epoch, window=window).take(0, sum(counts)).tolist()
    return ids
