"""Groups of shards of which an epoch reads some: rates and lengths as without them, and no more read than must be."""

import dataclasses
import itertools
import json
import pickle
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bamboo.cli.errors import DataError, UserError
from bamboo.datasets.plan.groups import form_groups, laid_down, shares_read, stretched
from bamboo.datasets.plan.mixture import MixedOrder
from bamboo.datasets.plan.order import Order
from bamboo.datasets.plan.rates import ONE, Rates, open_rates
from bamboo.datasets.plan.reading import predicted_reading
from tests.datasets.plan.columns import Counts, Floats, compiled, index_of, rates_of

SHARDS = st.lists(st.tuples(st.integers(0, 30), st.sampled_from([0.001, 0.05, 0.3, 0.9, 3.0])), min_size=1, max_size=30)


def bucketed(num_shards: int, rows: int, mean: float, num_buckets: int = 8) -> Floats:
    """Returns float64[num_shards * rows] probabilities, as of a pool packed by gain: gains like those measured, random inside a bucket."""
    rng = np.random.default_rng(0)
    gains = rng.beta(2.2, 2.0, num_shards * rows)
    buckets = np.sort(gains * mean / gains.mean()).reshape(num_buckets, -1)
    return np.concatenate([rng.permutation(bucket) for bucket in buckets])


def grouped(folder: Path, counts: Counts, probabilities: Floats, **settings: object) -> Rates:
    """Returns the rates of these probabilities with groups."""
    return compiled(folder, counts, probabilities, probabilities=True, grouped=True, **settings)


def group_of(rates: Rates) -> Counts:
    """Returns int64[S] the group of every shard."""
    assert rates.groups is not None
    return np.repeat(np.arange(len(rates.groups)), rates.groups[:, 0])


def test_rates_hold_in_groups(tmp_path: Path) -> None:
    """400 epochs of 41 shards, 0.2 visits a sample: every epoch of its exact length and every row at most once; inclusion of every row
    within 4.5 binomial errors of its rate, and spread as wide as these.
    """
    counts = np.array([0, *[30] * 20, 0, *[30] * 20], np.int64)
    probabilities = bucketed(40, 30, 0.2)
    probabilities[::17] = 0
    rates = grouped(tmp_path, counts, probabilities)
    order, epochs = Order(counts, seed=1, window=4, rates=rates), 400
    length = round(probabilities.sum())
    assert order.epoch_samples == length
    ids = order.take(0, epochs * length).ids.reshape(epochs, length)
    seen = np.array([np.bincount(row, minlength=len(probabilities)) for row in ids])
    assert seen.max() == 1
    assert not seen[:, probabilities == 0].any()
    expected = rates_of(rates)[probabilities > 0]
    error = np.sqrt(expected * (1 - expected) / epochs)
    z = ((seen.mean(0)[probabilities > 0] - expected) / error)[error > 0.005]
    assert np.abs(z).max() < 4.5
    assert 0.8 < z.std() < 1.25


def test_an_epoch_reads_no_more_of_a_group(tmp_path: Path) -> None:
    """In each of 200 epochs K shards of every group give samples, no other; each as often as predicted, within 4.5 binomial errors."""
    counts = np.full(64, 30, np.int64)
    rates = grouped(tmp_path, counts, bucketed(64, 30, 0.1))
    order, group, seen = Order(counts, seed=2, window=5, rates=rates), group_of(rates), np.zeros(64, np.int64)
    assert rates.groups is not None
    assert rates.groups[:, 1].sum() < 20
    for epoch in range(200):
        ids = order.take(epoch * order.epoch_samples, (epoch + 1) * order.epoch_samples).ids
        read = np.unique(ids // 30)
        assert np.array_equal(np.bincount(group[read], minlength=len(rates.groups)), rates.groups[:, 1])
        seen[read] += 1
    shares = shares_read(np.diff(rates.starts), rates.groups)
    assert (np.abs(seen / 200 - shares) <= 4.5 * np.sqrt(shares * (1 - shares) / 200) + 1e-9).all()


@given(shards=SHARDS.filter(lambda shards: any(size for size, _ in shards)), seed=st.integers(0, 10**6))
def test_groups_stretch_no_rate_too_far(shards: list[tuple[int, float]], seed: int) -> None:
    """Random shards, empty ones too, rates up to 3: in whole numbers, what a group lays down adds up to its sums, on K shards, and lifts no
    rate above 1; what has a higher one lies as it is.
    """
    rng = np.random.default_rng(seed)
    columns = [np.ceil(rng.uniform(size=size) * rate * ONE).astype(np.int64) for size, rate in shards]
    sums = np.array([column.sum() for column in columns])
    greatest = np.array([column.max(initial=0) for column in columns])
    groups = form_groups(sums, greatest, np.array([size for size, _ in shards]))
    number = np.repeat(np.arange(len(groups)), groups[:, 0])
    assert len(number) == len(sums)
    for epoch in range(3):
        laid = laid_down(sums, groups, np.uint64(seed + epoch))
        assert np.array_equal(np.bincount(number, laid), np.bincount(number, sums))
        assert np.array_equal(np.bincount(number[laid > 0], minlength=len(groups)), groups[:, 1])
        for shard in np.flatnonzero(laid).tolist():
            borders = stretched(np.cumsum([0, *columns[shard]]), int(laid[shard]))
            assert np.diff(borders).max() <= ONE if greatest[shard] < ONE else laid[shard] == sums[shard]


@given(shards=st.lists(st.tuples(st.floats(0.1, 1.0), st.floats(0.2, 1.0), st.integers(1, 5)), min_size=1, max_size=8))
def test_groups_are_the_cheapest(shards: list[tuple[float, float, int]]) -> None:
    """Against every way to cut up to eight shards into groups, each with the fewest reads that it bears: the same expected cost."""
    greatest = np.array([top for top, _, _ in shards])
    sums = np.array([round(top * share * 100 * ONE) for top, share, _ in shards])
    sizes = np.array([size for _, _, size in shards])

    def cost(start: int, stop: int) -> float:
        inside, total = sums[start:stop], int(sums[start:stop].sum())
        reads = int(np.ceil((total * greatest[start:stop] / inside).max() - 1e-9))
        possible = reads == 1 or (reads * inside).max() < total - reads
        return reads * float(inside @ sizes[start:stop]) / total if possible else np.inf

    cuts = itertools.chain.from_iterable(itertools.combinations(range(1, len(shards)), n) for n in range(len(shards)))
    least = min(sum(itertools.starmap(cost, itertools.pairwise((0, *cut, len(shards))))) for cut in cuts)
    units = np.array([int(np.floor(top * ONE)) for top in greatest])
    groups = form_groups(sums, units, sizes)
    assert float(shares_read(sums, groups) @ sizes) == pytest.approx(least, rel=1e-5)


@given(
    steps=st.lists(st.integers(0, 1 << 40), min_size=1, max_size=20).filter(any),
    total=st.one_of(st.integers(0, 1 << 54), st.integers(0, 1000)),
)
def test_stretching_is_exact(steps: list[int], total: int) -> None:
    """Sums up to 2⁴⁵ times totals up to 2⁵⁴ against Python's integers."""
    borders = np.cumsum([0, *steps])
    expected = [border * total // int(borders[-1]) for border in borders.tolist()]
    assert stretched(borders, total).tolist() == expected


def test_any_cut_of_a_grouped_order_is_the_order(tmp_path: Path) -> None:
    """Slices of a pickled copy, and single positions, against one stretch over four epochs; a sample's visits have keys of their own."""
    counts = np.array([40, 0, 40, 40, 7, 40, 40], np.int64)
    rates = grouped(tmp_path, counts, np.random.default_rng(0).uniform(0.0, 0.2, 207))
    order = Order(counts, seed=3, window=2, rates=rates)
    stop = 4 * order.epoch_samples
    whole, copy = order.take(0, stop), pickle.loads(pickle.dumps(order))
    for borders in ([0, 1, 13, 14, 50, stop], [0, stop // 2, stop]):
        pieces = [copy.take(*border) for border in itertools.pairwise(borders)]
        assert np.array_equal(np.concatenate([piece.ids for piece in pieces]), whole.ids)
        assert np.array_equal(np.concatenate([piece.keys for piece in pieces]), whole.keys)
    mixed = np.random.default_rng(1).permutation(stop)
    assert np.array_equal(copy.at(mixed).ids, whole.ids[mixed])
    assert len(set(zip(whole.ids.tolist(), whole.keys.tolist(), strict=True))) == stop
    shard_of = np.repeat(np.arange(len(counts)), counts)
    for place in range(0, stop - 9, 7):
        assert set(shard_of[whole.ids[place : place + 9]].tolist()) <= set(order.shards_in(place, place + 8, 0))


def test_a_mixture_with_a_grouped_folder(tmp_path: Path) -> None:
    """A grouped folder beside a plain one: quotas exact in each of 300 epochs, and inclusion by the rates at the quota's pace."""
    counts, plain = np.full(16, 25, np.int64), np.full(5, 40, np.int64)
    rates = grouped(tmp_path, counts, bucketed(16, 25, 0.2))
    orders = [Order(counts, seed=0, window=3, rates=rates), Order(plain, seed=1, window=3)]
    order = MixedOrder(orders, [40, 50], num_samples=[400, 200], num_shards=[16, 5], seed=4)
    ids = order.take(0, 300 * 90).ids.reshape(300, 90)
    assert ((ids < 400).sum(1) == 40).all()
    expected = rates_of(rates) * 40 / rates.epoch_samples
    counted = np.bincount(ids.ravel(), minlength=600)
    assert np.abs((counted[:400] / 300 - expected) / np.sqrt(expected / 300)).max() < 4.5
    assert counted[400:].max() - counted[400:].min() <= 1


@pytest.mark.parametrize("is_grouped", [False, True])
def test_reading_is_as_predicted(tmp_path: Path, is_grouped: bool) -> None:
    """A pool packed into eight buckets of gain, p ∝ gain, 30 % taken: the tars of 50 real epochs over the samples they take, within 5 % of
    the prediction: with groups about the 1.11 that the reference measures, without 3.33.
    """
    counts = np.full(128, 100, np.int64)
    index = dataclasses.replace(index_of(counts), size=np.random.default_rng(3).integers(40_000, 80_000, 12_800))
    shard_bytes = (index.size + 1_200).reshape(128, 100).sum(1)
    rates = compiled(tmp_path, counts, bucketed(128, 100, 0.3), probabilities=True, grouped=is_grouped)
    predicted = predicted_reading(rates, shard_bytes, index)
    order, read, used = Order(counts, seed=5, window=8, rates=rates), 0, 0
    for epoch in range(50):
        ids = order.take(epoch * order.epoch_samples, (epoch + 1) * order.epoch_samples).ids
        read += int(shard_bytes[np.unique(ids // 100)].sum())
        used += int((index.size[ids] + 1_200).sum())
    assert read / 50 == pytest.approx(predicted.read_bytes, rel=0.05)
    assert used / 50 == pytest.approx(predicted.used_bytes, rel=0.02)
    assert read / used == pytest.approx(predicted.amplification, rel=0.05)
    assert predicted.amplification == pytest.approx(1.14 if is_grouped else 3.33, rel=0.03)


def test_shards_of_less_than_a_sample_are_predicted(tmp_path: Path) -> None:
    """Shards that give a sample in three epochs of ten without any groups: that is how often they are read, on average over 200 epochs."""
    counts = np.full(40, 10, np.int64)
    index = dataclasses.replace(index_of(counts), size=np.full(400, 100, np.int64))
    rates = compiled(tmp_path, counts, np.full(400, 0.03), probabilities=True)
    predicted = predicted_reading(rates, np.full(40, 2_000, np.int64), index)
    assert predicted == pytest.approx((0.3 * 40 * 2_000, 12 * 200), rel=1e-6)
    ids = Order(counts, seed=0, window=4, rates=rates).take(0, 200 * 12).ids.reshape(200, 12)
    assert np.mean([len(np.unique(row // 10)) for row in ids]) == pytest.approx(12, rel=0.02)


def test_groups_are_read_again(tmp_path: Path) -> None:
    """Compiled, reopened with its hashes compared: the same groups and order; a card of version 2, which an older Bamboo refuses."""
    counts = np.full(20, 30, np.int64)
    rates = grouped(tmp_path, counts, bucketed(20, 30, 0.1, num_buckets=4))
    again = open_rates(tmp_path / "rates", counts, verify=True)
    assert np.array_equal(rates.groups, again.groups)
    first, second = (Order(counts, seed=0, window=3, rates=column).take(0, 200).ids for column in (rates, again))
    assert np.array_equal(first, second)
    card = json.loads((tmp_path / "rates/rates.json").read_text())
    assert (card["version"], list(card["files"]), card["made_by"]["grouped"]) == (2, ["groups.npy"], True)


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", None, b"altered"])
def test_damaged_groups_are_named(tmp_path: Path, damage: bytes | None) -> None:
    """Cut short, gone, or with other numbers than the card's hash: DataError with the folder, whether hashes were asked for or not."""
    counts = np.full(20, 30, np.int64)
    grouped(tmp_path, counts, np.full(600, 0.1))
    path = tmp_path / "rates/groups.npy"
    if damage is None:
        path.unlink()
    elif damage == b"altered":
        np.save(path, np.array([[20, 20]], np.int32))
    else:
        path.write_bytes(damage)
    with pytest.raises(DataError, match="rates"):
        open_rates(tmp_path / "rates", counts)


def test_coupled_epochs_have_no_groups(tmp_path: Path) -> None:
    """Refused with both settings named, and nothing left behind."""
    with pytest.raises(UserError, match="coupled=True with grouped=True"):
        compiled(tmp_path, np.full(4, 10, np.int64), np.full(40, 0.1), coupled=True, grouped=True)
    assert not list(tmp_path.glob("*rates*"))


def test_even_shards_stay_as_they_are(tmp_path: Path) -> None:
    """Every shard has a sample that is always taken: all are read in every epoch, in the order of the same column without groups."""
    counts = np.full(12, 20, np.int64)
    weights = np.tile(np.where(np.arange(20) == 3, 1.0, 0.25), 12)
    orders: list[npt.NDArray[np.int64]] = []
    for name in ("plain", "grouped"):
        (tmp_path / name).mkdir()
        rates = compiled(tmp_path / name, counts, weights, probabilities=True, grouped=name == "grouped")
        orders.append(Order(counts, seed=0, window=3, rates=rates).take(0, 300).ids)
    assert np.array_equal(*orders)
