"""The order of one folder: each sample once an epoch, in an order that depends on nothing but shards, seed and epoch."""

import itertools
import json
import os
import pickle
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bamboo.datasets.plan.order import PLAN_FORMAT, Order
from bamboo.datasets.plan.slices import rank_slice

GOLDEN = Path(__file__).parents[1] / "golden" / "order.json"
COUNTS = st.lists(st.one_of(st.just(0), st.just(1), st.integers(0, 60)), min_size=1, max_size=25).filter(lambda counts: sum(counts) > 0)

Counts = npt.NDArray[np.int64]


def counts_of(counts: list[int]) -> Counts:
    """Returns shard counts as the order takes them."""
    return np.array(counts, np.int64)


def shards_of(counts: Counts, ids: Counts) -> Counts:
    """Returns the shard of each sample id."""
    return np.repeat(np.arange(len(counts)), counts)[ids]


@given(counts=COUNTS, seed=st.integers(-5, 5), epoch=st.integers(0, 3), window=st.integers(1, 30))
def test_every_sample_once_an_epoch(counts: list[int], seed: int, epoch: int, window: int) -> None:
    """For random shard sizes, empty and one-sample shards and any window: a permutation of the samples."""
    order, total = Order(counts_of(counts), seed=seed, window=window), sum(counts)
    assert order.epoch_samples == total
    assert np.array_equal(np.sort(order.take(epoch * total, (epoch + 1) * total).ids), np.arange(total))


@given(counts=COUNTS, cuts=st.lists(st.integers(0, 10**6), max_size=6), window=st.integers(1, 30))
def test_any_cut_of_the_order_is_the_order(counts: list[int], cuts: list[int], window: int) -> None:
    """`take` in pieces, over two and a half epochs and from a pickled copy, against `take` at once."""
    order = Order(counts_of(counts), seed=1, window=window)
    stop = sum(counts) * 5 // 2 + 1
    borders = [0, *sorted(cut % stop for cut in cuts), stop]
    copy = pickle.loads(pickle.dumps(order))
    pieces = [copy.take(*border) for border in itertools.pairwise(borders)]
    whole = order.take(0, stop)
    assert np.array_equal(np.concatenate([piece.ids for piece in pieces]), whole.ids)
    assert np.array_equal(np.concatenate([piece.keys for piece in pieces]), whole.keys)


@given(counts=COUNTS, window=st.integers(1, 30))
def test_no_two_visits_of_a_sample_share_a_key(counts: list[int], window: int) -> None:
    """Five epochs: as many different (sample, key) pairs as visits."""
    visits = Order(counts_of(counts), seed=0, window=window).take(0, 5 * sum(counts))
    assert len(set(zip(visits.ids.tolist(), visits.keys.tolist(), strict=True))) == len(visits.ids)


@given(counts=COUNTS, window=st.integers(1, 8), ahead=st.integers(0, 4), place=st.integers(0, 10**6))
def test_shards_ahead_are_the_shards_read(counts: list[int], window: int, ahead: int, place: int) -> None:
    """What is read at a position is among its shards; without reading ahead these are no more than the window."""
    order, total = Order(counts_of(counts), seed=3, window=window), sum(counts)
    place %= 2 * total
    shards = order.shards_in(place, place, ahead)
    assert int(shards_of(counts_of(counts), order.take(place, place + 1).ids)[0]) in shards
    assert len(set(shards)) == len(shards) <= window + ahead
    if ahead:
        assert shards[: len(order.shards_in(place, place, 0))] == order.shards_in(place, place, 0)


@given(counts=COUNTS, window=st.integers(1, 8), ahead=st.integers(0, 4), place=st.integers(0, 10**6), length=st.integers(1, 40))
def test_shards_of_a_stretch(counts: list[int], window: int, ahead: int, place: int, length: int) -> None:
    """Those of its positions one by one, in that order, and then those that come after its last one."""
    order, place = Order(counts_of(counts), seed=3, window=window), place % (2 * sum(counts))
    one_by_one = [shard for position in range(place, place + length) for shard in order.shards_in(position, position, 0)]
    last = order.shards_in(place + length - 1, place + length - 1, ahead)
    shards = order.shards_in(place, place + length - 1, ahead)
    assert set(shards) == {*one_by_one, *last}
    assert shards[: len(set(one_by_one))] == list(dict.fromkeys(one_by_one))


def test_reading_slides_through_the_shards() -> None:
    """40 shards of 50, window 4: an epoch's slots of about 50 samples mix four shards evenly; one leaves and one enters per slot."""
    counts = counts_of([50] * 40)
    order = Order(counts, seed=0, window=4)
    shard_of = shards_of(counts, order.take(0, 2000).ids)
    used = [tuple(sorted(order.shards_in(place, place, 0))) for place in range(2000)]
    slots = [(shards, len(list(places))) for shards, places in itertools.groupby(used)]
    assert len(slots) == 40
    assert all(len(shards) == 4 and 40 <= length <= 60 for shards, length in slots)
    assert all(len(set(one) & set(other)) == 3 for (one, _), (other, _) in itertools.pairwise(slots))
    assert all(shard in shards for shard, shards in zip(shard_of.tolist(), used, strict=True))
    start = 0
    for _, length in slots:
        assert np.bincount(shard_of[start : start + length], minlength=40).max() <= 13
        start += length
    assert max(len(set(shard_of[start : start + 64].tolist())) for start in range(0, 1900, 7)) <= 6


def test_an_epoch_with_all_shards_open_is_a_full_shuffle() -> None:
    """Window ≥ shards: position and id uncorrelated (|r| < 5 / √n), and neighbours as often of one shard as in a full shuffle (5 σ)."""
    counts = counts_of([100] * 50)
    ids = Order(counts, seed=0, window=50).take(0, 5000).ids
    assert abs(np.corrcoef(np.arange(5000), ids)[0, 1]) < 5 / 5000**0.5
    same = np.mean(np.diff(shards_of(counts, ids)) == 0)
    assert abs(same - 99 / 4999) < 5 * (0.02 * 0.98 / 4999) ** 0.5


def test_one_sample_shards_are_spread() -> None:
    """2,000 shards of one sample: a permutation without trace of the shards' numbers."""
    ids = Order(counts_of([1] * 2000), seed=0, window=64).take(0, 2000).ids
    assert abs(np.corrcoef(np.arange(2000), ids)[0, 1]) < 5 / 2000**0.5


def test_seeds_and_epochs_differ() -> None:
    """Six (seed, epoch) pairs: six orders."""
    counts = counts_of([20] * 10)
    pairs = itertools.product(range(3), range(2))
    orders = {tuple(Order(counts, seed=seed, window=4).take(epoch * 200, epoch * 200 + 200).ids.tolist()) for seed, epoch in pairs}
    assert len(orders) == 6


def test_a_pair_of_rows_meets_as_often_as_by_chance() -> None:
    """600 epochs of 8 shards of 6 rows, window 4: hands of 2, 2, 1, 1 hold each pair of rows 2 times in 15 (5 σ)."""
    counts = counts_of([6] * 8)
    order = Order(counts, seed=5, window=4)
    together = np.zeros((6, 6))
    for epoch in range(600):
        plan = order._plan(epoch)
        slots = np.searchsorted(plan._starts, np.arange(48), side="right") - 1
        slot_of = np.empty(48, np.int64)
        slot_of[order.take(epoch * 48, epoch * 48 + 48).ids] = slots
        rows = slot_of.reshape(8, 6)
        together += (rows[:, :, None] == rows[:, None, :]).sum(0)
    pairs = together[np.triu_indices(6, 1)]
    chance, trials = 2 / 15, 600 * 8
    assert np.abs(pairs / trials - chance).max() < 5 * (chance * (1 - chance) / trials) ** 0.5


@given(counts=COUNTS, window=st.integers(1, 30))
def test_slot_sizes_are_the_sums_of_their_hands(counts: list[int], window: int) -> None:
    """The sizes by differences against adding up hand by hand."""
    plan = Order(counts_of(counts), seed=2, window=window)._plan(0)
    if plan._num_hands > 1:
        places = np.arange(len(plan._items))
        slow = sum(np.roll(plan._hand(places, hand)[1], hand) for hand in range(plan._num_hands))
        assert np.array_equal(np.diff(plan._starts), slow)


@given(batch=st.integers(1, 50), world_size=st.integers(1, 9), unit=st.sampled_from([1, 2]))
def test_rank_slices_cover_the_batch(batch: int, world_size: int, unit: int) -> None:
    """Disjoint, in order, whole units, and even up to one unit."""
    slices = [rank_slice(batch * unit, rank, world_size, unit) for rank in range(world_size)]
    assert [place for places in slices for place in places] == list(range(batch * unit))
    assert all(places.start % unit == 0 for places in slices)
    assert max(map(len, slices)) - min(map(len, slices)) <= unit


def test_golden_order() -> None:
    """The order of format 2, pinned: a change is breaking, raises PLAN_FORMAT and is named in CHANGELOG.md."""
    cases = [([5, 0, 3, 1, 7], 0, 0, 2), ([5, 0, 3, 1, 7], 0, 1, 2), ([4] * 6, 123, 2, 3), ([30], 7, 0, 1), ([9] * 5, -1, 4, 100)]
    actual = {
        "plan_format": PLAN_FORMAT,
        "orders": [
            {"counts": counts, "seed": seed, "epoch": epoch, "window": window, **_visits(counts, seed, epoch, window)}
            for counts, seed, epoch, window in cases
        ],
    }
    if os.environ.get("BAMBOO_UPDATE_GOLDEN"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(actual) + "\n")
    assert actual == json.loads(GOLDEN.read_text())


def _visits(counts: list[int], seed: int, epoch: int, window: int) -> dict[str, object]:
    visits = Order(counts_of(counts), seed=seed, window=window).take(epoch * sum(counts), (epoch + 1) * sum(counts))
    return {"ids": visits.ids.tolist(), "first_key": f"{int(visits.keys[0]):016x}"}


@pytest.mark.parametrize("position", [0, 4_999, 5_000, 123_456_789])
def test_far_positions_cost_no_replay(position: int) -> None:
    """A position's visit asked for alone equals the one of a stretch around it."""
    order = Order(counts_of([700, 0, 1300, 3000]), seed=1, window=2)
    start = max(position - 10, 0)
    around = order.take(start, position + 10)
    alone = order.take(position, position + 1)
    assert (alone.ids[0], alone.keys[0]) == (around.ids[position - start], around.keys[position - start])
