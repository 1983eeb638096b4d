"""Two weight columns in turn: every epoch by its own, with its own length, and what was compiled before stays what it was."""

import itertools
import json
import pickle
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from bamboo.cli.errors import DataError, UserError
from bamboo.datasets.atomic import sha256_file, sha256_json
from bamboo.datasets.plan.mixture import MixedOrder
from bamboo.datasets.plan.order import Order
from bamboo.datasets.plan.rates import Rates, open_rates
from bamboo.datasets.plan.recipe import PlannedSource, PlanRecipe, rates_identity
from bamboo.datasets.plan.weighting import Weighting, compile_rates, drawn_samples
from tests.datasets.plan.columns import Floats, compiled, index_of, rates_of

COUNTS = np.array([100, 0, 1, 50, 200, 3], np.int64)
TOTAL = int(COUNTS.sum())
GAINS = np.random.default_rng(0).beta(2.2, 2.0, TOTAL)
LATER = np.maximum(0.1, 1 - GAINS)
"""The seed's probabilities of its even passes."""


def two_phase(folder: Path, **settings: object) -> Rates:
    """Returns the rates of the gains and of what the seed takes in between."""
    np.save(folder / "second.npy", LATER)
    return compiled(folder, COUNTS, GAINS, probabilities=True, second=folder / "second.npy", **settings)


def epochs_of(order: Order, rates: Rates, pairs: int) -> list[npt.NDArray[np.int64]]:
    """Returns [int64[pairs, N], int64[pairs, N]] visits in the first and in the second epochs."""
    assert rates.second is not None
    lengths = [rates.epoch_samples, rates.second.epoch_samples]
    ids = order.take(0, pairs * sum(lengths)).ids.reshape(pairs, sum(lengths))
    return [np.array([np.bincount(row, minlength=TOTAL) for row in part]) for part in np.split(ids, [lengths[0]], axis=1)]


@pytest.mark.parametrize("is_grouped", [False, True])
def test_each_epoch_draws_by_its_own_column(tmp_path: Path, is_grouped: bool) -> None:
    """200 pairs: lengths are the two sums, no sample twice in an epoch, inclusion in first and second epochs within 4.5 binomial errors."""
    rates = two_phase(tmp_path, grouped=is_grouped)
    assert rates.second is not None
    assert [rates.epoch_samples, rates.second.epoch_samples] == [round(GAINS.sum()), round(LATER.sum())]
    order = Order(COUNTS, seed=1, window=3, rates=rates)
    assert order.epoch_samples == -(-(round(GAINS.sum()) + round(LATER.sum())) // 2)
    for seen, column in zip(epochs_of(order, rates, 200), (rates, rates.second), strict=True):
        expected = rates_of(column)
        assert seen.max() == 1
        error = np.sqrt(expected * (1 - expected) / 200)
        assert np.abs((seen.mean(0) - expected) / error)[error > 0.005].max() < 4.5


def test_the_two_draws_are_independent(tmp_path: Path) -> None:
    """The share never seen in a pair: the mean of (1 − p)(1 − q), about the 22 % that the reference measures of the seed; coupled: 0."""
    rates = two_phase(tmp_path)
    first, second = epochs_of(Order(COUNTS, seed=2, window=3, rates=rates), rates, 100)
    unseen = float(np.mean(first + second == 0))
    assert unseen == pytest.approx(float(np.mean((1 - GAINS) * (1 - LATER))), abs=0.01)
    assert 0.17 < unseen < 0.23


def test_any_cut_is_the_order(tmp_path: Path) -> None:
    """Pieces of a pickled copy, single positions and shuffled ones against one stretch over five epochs of two lengths; all keys differ."""
    rates = two_phase(tmp_path)
    order = Order(COUNTS, seed=3, window=2, rates=rates)
    stop = 5 * order.epoch_samples
    whole, copy = order.take(0, stop), pickle.loads(pickle.dumps(order))
    pieces = [copy.take(*border) for border in itertools.pairwise([0, 5, rates.epoch_samples, rates.epoch_samples + 1, 400, stop])]
    assert np.array_equal(np.concatenate([piece.ids for piece in pieces]), whole.ids)
    assert np.array_equal(np.concatenate([piece.keys for piece in pieces]), whole.keys)
    mixed = np.random.default_rng(1).permutation(stop)
    assert np.array_equal(copy.at(mixed).ids, whole.ids[mixed])
    assert np.array_equal(copy.at(mixed).keys, whole.keys[mixed])
    assert len(set(zip(whole.ids.tolist(), whole.keys.tolist(), strict=True))) == stop
    shard_of = np.repeat(np.arange(len(COUNTS)), COUNTS)
    for place in range(0, stop - 9, 7):
        assert set(shard_of[whole.ids[place : place + 9]].tolist()) <= set(order.shards_in(place, place + 8, 0))


def test_epochs_begin_where_they_begin(tmp_path: Path) -> None:
    """`boundary` against the running sum of the two lengths, over three pairs."""
    rates = two_phase(tmp_path)
    assert rates.second is not None
    order = Order(COUNTS, seed=3, window=2, rates=rates)
    begins = [0, *itertools.accumulate([rates.epoch_samples, rates.second.epoch_samples] * 3)]
    assert [order.boundary(begin) for begin in begins] == begins
    assert [order.boundary(begin + 1) for begin in begins[:-1]] == begins[1:]


def test_weights_are_scaled_each_by_itself(tmp_path: Path) -> None:
    """Weights, not probabilities: both epochs of the length that is set, each column's rates as of that column alone."""
    for name, weights in (("a", GAINS), ("b", LATER)):
        (tmp_path / name).mkdir()
        compiled(tmp_path / name, COUNTS, weights, epoch_samples=90)
    np.save(tmp_path / "second.npy", LATER)
    rates = compiled(tmp_path, COUNTS, GAINS, epoch_samples=90, second=tmp_path / "second.npy")
    assert rates.second is not None
    for name, column in (("a", rates), ("b", rates.second)):
        assert column.epoch_samples == 90
        assert np.array_equal(rates_of(column), rates_of(open_rates(tmp_path / name / "rates", COUNTS)))


def test_the_recipe_finds_both_columns(tmp_path: Path) -> None:
    """The order that the plan's recipe builds from the compiled folder: that of the rates themselves."""
    order = Order(COUNTS, seed=3, window=2, rates=two_phase(tmp_path))
    recipe = PlanRecipe(3, 2, coupled=False, sources=(PlannedSource("a", 0, "rates"),))
    again = recipe.order([COUNTS], tmp_path, 0)
    assert again.epoch_samples == order.epoch_samples
    assert np.array_equal(again.take(0, 900).ids, order.take(0, 900).ids)


def test_a_mixture_goes_through_both_at_its_own_pace(tmp_path: Path) -> None:
    """200 places of an epoch of 260 beside a plain folder: quotas exact, and over 40 epochs every sample as often as by the two sums."""
    rates = two_phase(tmp_path)
    assert rates.second is not None
    orders = [Order(COUNTS, seed=0, window=2, rates=rates), Order(COUNTS, seed=1, window=2)]
    order = MixedOrder(orders, [200, 60], num_samples=[TOTAL, TOTAL], num_shards=[6, 6], seed=2)
    seen = order.take(0, 40 * 260).ids.reshape(40, 260)
    assert ((seen < TOTAL).sum(1) == 200).all()
    expected = (GAINS + LATER) * 40 * 200 / (rates.epoch_samples + rates.second.epoch_samples)
    assert np.abs(np.bincount(seen[seen < TOTAL], minlength=TOTAL) - expected).max() < 4.5 * float(expected.max()) ** 0.5


@pytest.mark.parametrize("is_grouped", [False, True])
@pytest.mark.parametrize("empty", [0, 1])
@pytest.mark.parametrize("share", [0.0, 1e-3])
def test_one_of_the_two_may_come_to_no_sample(tmp_path: Path, is_grouped: bool, empty: int, share: float) -> None:
    """Probabilities of 0, or of 0.2 in all, in one column: epochs of the other alone, one after another, by its own rates; any stretch and
    the shards in use agree; beside a plain folder of two phases the other phase has none of its samples.
    """
    columns = [GAINS, GAINS]
    columns[empty] = GAINS * share
    np.save(tmp_path / "second.npy", columns[1])
    rates = compiled(tmp_path, COUNTS, columns[0], probabilities=True, second=tmp_path / "second.npy", grouped=is_grouped)
    count = round(GAINS.sum())
    order = Order(COUNTS, seed=1, window=2, rates=rates)
    assert order.lengths == ((0, count) if empty == 0 else (count, 0))
    assert [order.boundary(place) for place in (0, 1, count, count + 1)] == [0, count, count, 2 * count]
    ids = order.take(0, 200 * count).ids
    seen = np.array([np.bincount(epoch, minlength=TOTAL) for epoch in ids.reshape(200, count)])
    error = np.sqrt(GAINS * (1 - GAINS) / 200)
    assert seen.max() == 1
    assert np.abs((seen.mean(0) - GAINS) / error)[error > 0.005].max() < 4.5
    assert np.array_equal(pickle.loads(pickle.dumps(order)).take(count - 3, count + 9).ids, ids[count - 3 : count + 9])
    shard_of = np.repeat(np.arange(len(COUNTS)), COUNTS)
    for place in range(0, 3 * count, 11):
        assert set(shard_of[ids[place : place + 9]].tolist()) <= set(order.shards_in(place, place + 8, 2))
    (tmp_path / "full").mkdir()
    two_phase(tmp_path / "full")
    recipe = PlanRecipe(3, 2, coupled=False, sources=(PlannedSource("a", -(-count // 2), "rates"), PlannedSource("b", 177, "full/rates")))
    lengths = [round(GAINS.sum()), round(LATER.sum())]
    phases = [lengths[0] + count * (empty == 1), lengths[1] + count * (empty == 0)]
    mixed = recipe.order([COUNTS, COUNTS], tmp_path, 0).take(0, 3 * sum(phases)).ids
    for number, phase in enumerate(np.split(mixed, np.cumsum(phases * 3)[:-1])):
        assert (phase < TOTAL).sum() == (0 if number % 2 == empty else count)


@pytest.mark.parametrize(
    ("first", "settings", "message"),
    [
        (np.full(TOTAL, 0.001), {}, "an epoch of 0 samples cannot be drawn"),
        (np.full(TOTAL, 1.5), {"max_repeats": 1.0}, "a probability of 1.5 is above 1"),
        (np.zeros(TOTAL), {}, "every weight is 0"),
        (np.full(TOTAL, 0.001), {"second": True}, "of both come to no sample"),
    ],
)
def test_a_snapshots_settings_are_those_of_its_policy(tmp_path: Path, first: Floats, settings: dict[str, object], message: str) -> None:
    """What cannot be drawn of a snapshot: messages name bamboo grow as the remedy, and no setting that stands beside no snapshot."""
    np.save(tmp_path / "weights.npy", first)
    if "second" in settings:
        settings = {"second": tmp_path / "weights.npy"}
    weighting = Weighting(weights=tmp_path / "weights.npy", probabilities=True, **settings)  # type: ignore[arg-type]  # settings by name
    with pytest.raises(UserError, match=rf"^data\.snapshot.*{message}.*; make a snapshot of another policy: bamboo grow$") as caught:
        drawn_samples(weighting, index_of(COUNTS), "data.snapshot")
    assert "sampling." not in str(caught.value)


def test_length_and_card_say_the_mean(tmp_path: Path) -> None:
    """What an epoch counts as before compiling and in the card: the mean of both, rounded up; the settings of both files in the card."""
    two_phase(tmp_path)
    weighting = Weighting(weights=tmp_path / "weights.npy", second=tmp_path / "second.npy", probabilities=True)
    mean = -(-(round(GAINS.sum()) + round(LATER.sum())) // 2)
    assert drawn_samples(weighting, index_of(COUNTS), "sampling.weights") == mean
    card = json.loads((tmp_path / "rates/rates.json").read_text())
    assert (card["version"], card["epoch_samples"]) == (2, mean)
    assert list(card["files"]) == ["second-rates.npy", "second-starts.npy"]
    assert {"weights_file", "second_file"} <= card["made_by"].keys()


def test_names_of_columns_tell_what_is_new_and_keep_what_was(tmp_path: Path) -> None:
    """Hashes of the settings that there were before second columns and groups, worked out here; with either another; second by content."""
    np.save(tmp_path / "weights.npy", GAINS)
    settings = {"weights": sha256_file(tmp_path / "weights.npy"), "probabilities": True, "balance": 0.0, "max_repeats": 8.0}
    settings |= {"epoch_samples": None, "coupled": False}
    plain = Weighting(weights=tmp_path / "weights.npy", probabilities=True)
    assert rates_identity(plain, "data") == f"rates-{sha256_json([settings, 'data'])[:16]}"
    names = {rates_identity(plain, "data")}
    for seconds in (LATER, GAINS):
        np.save(tmp_path / "second.npy", seconds)
        for grouped in (False, True):
            weighting = Weighting(weights=plain.weights, second=tmp_path / "second.npy", probabilities=True, grouped=grouped)
            names.add(rates_identity(weighting, "data"))
    assert len(names) == 5


def test_a_column_alone_is_compiled_as_ever(tmp_path: Path) -> None:
    """Without anything new: version 1, the three files and the entries of old, so old Bamboos and old folders go on."""
    compiled(tmp_path, COUNTS, GAINS, probabilities=True)
    assert sorted(path.name for path in (tmp_path / "rates").iterdir()) == ["rates.json", "rates.npy", "starts.npy"]
    card = json.loads((tmp_path / "rates/rates.json").read_text())
    assert list(card) == ["format", "version", "num_samples", "epoch_samples", "sha256", "made_by"]
    assert card["version"] == 1
    old = ["weights", "probabilities", "balance", "max_repeats", "epoch_samples", "coupled", "weights_file", "data_hash"]
    assert list(card["made_by"]) == old


@pytest.mark.parametrize("name", ["second-rates.npy", "second-starts.npy"])
def test_a_damaged_second_column_is_named(tmp_path: Path, name: str) -> None:
    """One of its files gone, or altered: DataError; of the rates themselves where hashes are compared."""
    two_phase(tmp_path)
    path = tmp_path / "rates" / name
    data = path.read_bytes()
    path.unlink()
    with pytest.raises(DataError, match="rates"):
        open_rates(tmp_path / "rates", COUNTS)
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DataError, match=f"{name}: altered"):
        open_rates(tmp_path / "rates", COUNTS, verify=True)


@pytest.mark.parametrize(
    ("weights", "second", "message"),
    [
        (None, LATER, "needs a first"),
        (GAINS, LATER[:-1], "holds 353 numbers for 354 samples"),
        (GAINS / 1000, np.zeros(TOTAL), "second.npy: the probabilities of both come to no sample.*; raise them"),
        (GAINS, np.where(np.arange(TOTAL) == 7, -1.0, 0.5), "second.npy: sample 7 has -1.0"),
    ],
)
def test_a_second_column_that_cannot_be_is_named(tmp_path: Path, weights: Floats | None, second: Floats, message: str) -> None:
    """Without a first, of another length, without any sample beside a first of none, below 0: UserError, nothing left behind."""
    np.save(tmp_path / "weights.npy", GAINS if weights is None else weights)
    np.save(tmp_path / "second.npy", second)
    path = None if weights is None else tmp_path / "weights.npy"
    weighting = Weighting(weights=path, second=tmp_path / "second.npy", probabilities=True)
    with pytest.raises(UserError, match=message):
        compile_rates(weighting, index_of(COUNTS), COUNTS, tmp_path / "rates", "sampling.weights")
    assert not list(tmp_path.glob("*rates*"))
