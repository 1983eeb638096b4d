"""Coupled epochs over a part of the samples: a pair sees every member exactly once and no other, whatever way it is asked for."""

import itertools
import json
import pickle
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bamboo.cli.errors import DataError, UserError
from bamboo.datasets.plan.order import Order, SampleOrder
from bamboo.datasets.plan.rates import ONE, Rates, open_rates
from bamboo.datasets.plan.recipe import PlannedSource, PlanRecipe, rates_identity
from bamboo.datasets.plan.weighting import Weighting, compile_rates, drawn_samples, paired_samples
from tests.datasets.plan.columns import Counts, Floats, compiled, index_of, rates_of

COUNTS = np.array([100, 0, 1, 50, 40, 200, 3], np.int64)
TOTAL = int(COUNTS.sum())
MEMBERS = np.random.default_rng(0).random(TOTAL) < 0.6
MEMBERS[151:191] = False  # a shard without any
NUM_MEMBERS = int(MEMBERS.sum())
GAINS = np.where(MEMBERS, np.random.default_rng(1).beta(2.2, 2.0, TOTAL), 0)
GAINS[np.flatnonzero(MEMBERS)[::9]] = 0  # members that come in second epochs alone
DRAWN = round(GAINS.sum())


def coupled(folder: Path, weights: Floats, members: npt.NDArray[np.generic], counts: Counts = COUNTS, **options: object) -> Rates:
    """Returns the rates of coupled epochs over the members."""
    np.save(folder / "members.npy", members)
    return compiled(folder, counts, weights, coupled=True, second=folder / "members.npy", **options)


def probable(folder: Path) -> Order:
    """Returns the order of the gains, taken as probabilities."""
    return Order(COUNTS, seed=3, window=3, rates=coupled(folder, GAINS, MEMBERS.astype(np.float32), probabilities=True), coupled=True)


@pytest.mark.parametrize("kind", [np.float32, np.uint8, np.int64])
def test_a_pair_sees_every_member_once(tmp_path: Path, kind: type[np.number]) -> None:
    """200 pairs: the sorted samples of each are the members; the first has as many as the gains add up to, each within 4.5 binomial errors
    of its rate; pairs differ.
    """
    rates = coupled(tmp_path, GAINS, MEMBERS.astype(kind), probabilities=True)
    order = Order(COUNTS, seed=3, window=3, rates=rates, coupled=True)
    assert order.lengths == (DRAWN, NUM_MEMBERS - DRAWN)
    assert order.epoch_samples == -(-NUM_MEMBERS // 2)
    pairs = order.take(0, 200 * NUM_MEMBERS).ids.reshape(200, NUM_MEMBERS)
    assert (np.sort(pairs, axis=1) == np.flatnonzero(MEMBERS)).all()
    first = np.array([np.bincount(pair[:DRAWN], minlength=TOTAL) for pair in pairs])
    expected = rates_of(rates)
    error = np.sqrt(expected * (1 - expected) / 200)
    assert np.abs((first.mean(0) - expected)[error > 0.005] / error[error > 0.005]).max() < 4.5
    assert not np.array_equal(np.sort(pairs[0, :DRAWN]), np.sort(pairs[1, :DRAWN]))


@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(lambda counts: sum(counts) > 1),
    seed=st.integers(0, 10**6),
    window=st.integers(1, 9),
    share=st.floats(0.05, 1),
    drawn=st.floats(0.05, 1),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
def test_any_members_any_shards(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], seed: int, window: int, share: float, drawn: float
) -> None:
    """Random shards and members, from one to all of them, and first epochs up to all that there are: three pairs see each member once."""
    shards, total = np.array(counts, np.int64), sum(counts)
    rng = np.random.default_rng(seed)
    members = rng.permutation(total) < max(1, round(share * total))
    length = max(1, round(drawn * members.sum()))
    weights = np.where(members, rng.exponential(size=total) + 1e-6, 0)
    rates = coupled(tmp_path_factory.mktemp("column"), weights, members.astype(np.float32), shards, epoch_samples=length)
    order = Order(shards, seed=seed, window=window, rates=rates, coupled=True)
    assert order.lengths == (length, members.sum() - length)
    pairs = order.take(0, 3 * members.sum()).ids.reshape(3, -1)
    assert (np.sort(pairs, axis=1) == np.flatnonzero(members)).all()


def test_any_cut_is_the_order(tmp_path: Path) -> None:
    """Pieces of a pickled copy, and shuffled positions, against one stretch over three pairs; all keys differ; shards are told before."""
    order, stop = probable(tmp_path), 3 * NUM_MEMBERS
    whole, copy = order.take(0, stop), pickle.loads(pickle.dumps(order))
    borders = [0, 5, DRAWN - 1, DRAWN, DRAWN + 1, NUM_MEMBERS, 2 * NUM_MEMBERS + DRAWN, stop]
    pieces = [copy.take(*border) for border in itertools.pairwise(borders)]
    assert np.array_equal(np.concatenate([piece.ids for piece in pieces]), whole.ids)
    assert np.array_equal(np.concatenate([piece.keys for piece in pieces]), whole.keys)
    mixed = np.random.default_rng(1).permutation(stop)
    assert np.array_equal(copy.at(mixed).ids, whole.ids[mixed])
    assert np.array_equal(copy.at(mixed).keys, whole.keys[mixed])
    assert len(set(zip(whole.ids.tolist(), whole.keys.tolist(), strict=True))) == stop
    shard_of = np.repeat(np.arange(len(COUNTS)), COUNTS)
    for place in range(0, stop - 9, 7):
        told = order.shards_in(place, place + 8, 0)
        assert set(shard_of[whole.ids[place : place + 9]].tolist()) <= set(told)
        assert 4 not in told, "a shard without members is never read"
    begins = [0, NUM_MEMBERS, 2 * NUM_MEMBERS]
    assert [order.boundary(place) for place in (0, 1, DRAWN, NUM_MEMBERS, NUM_MEMBERS + 1)] == [0, *begins[1:2] * 3, begins[2]]


@pytest.mark.parametrize("tiny", [0.0, 1e-4])
def test_first_epochs_without_a_sample(tmp_path: Path, tiny: float) -> None:
    """Probabilities that add up to less than half: second epochs alone, of all members or samples; told, cut and read ahead."""
    for name, second in (("members", MEMBERS), ("all", np.ones(TOTAL, bool))):
        folder = tmp_path / name
        folder.mkdir()
        chances, num_seen = np.where(second, tiny, 0), int(second.sum())
        if name == "members":
            rates = coupled(folder, chances, second.astype(np.float32), probabilities=True)
        else:
            rates = compiled(folder, COUNTS, chances, probabilities=True, coupled=True)
        assert drawn_samples(Weighting(weights=folder / "weights.npy", probabilities=True, coupled=True), index_of(COUNTS), "w") == 0
        order = Order(COUNTS, seed=3, window=2, rates=rates, coupled=True)
        assert order.lengths == (0, num_seen)
        pairs = order.take(0, 3 * num_seen)
        assert (np.sort(pairs.ids.reshape(3, -1), axis=1) == np.flatnonzero(second)).all()
        assert len(set(pairs.keys.tolist())) == 3
        assert np.array_equal(order.take(num_seen - 2, num_seen + 2).ids, pairs.ids[num_seen - 2 : num_seen + 2])
        assert [order.boundary(place) for place in (0, 1, num_seen)] == [0, num_seen, num_seen]
        begin = order.shards_in(num_seen, num_seen, 0)
        assert set(order.shards_in(num_seen - 1, num_seen - 1, len(COUNTS))) >= set(begin), "what comes next is read ahead"


def test_all_members_are_the_order_without_membership(tmp_path: Path) -> None:
    """Membership of 1 throughout: samples and keys of the same column without it, of weights too, whose usual epoch is half."""
    weights = np.random.default_rng(2).exponential(size=TOTAL)
    for name in ("plain", "with"):
        (tmp_path / name).mkdir()
    rates = [compiled(tmp_path / "plain", COUNTS, weights, coupled=True), coupled(tmp_path / "with", weights, np.ones(TOTAL))]
    plain, members = (Order(COUNTS, seed=4, window=2, rates=column, coupled=True).take(0, 3 * TOTAL) for column in rates)
    assert np.array_equal(plain.ids, members.ids)
    assert np.array_equal(plain.keys, members.keys)


def test_lengths_of_weights_and_probabilities(tmp_path: Path) -> None:
    """What is told before compiling and in the card: half of the members of weights, the sum of probabilities; and the members."""
    index = index_of(COUNTS)
    for number, (probabilities, drawn) in enumerate([(False, -(-NUM_MEMBERS // 2)), (True, DRAWN)]):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        rates = coupled(folder, GAINS, MEMBERS.astype(np.uint8), probabilities=probabilities)
        paths = {"weights": folder / "weights.npy", "second": folder / "members.npy"}
        weighting = Weighting(**paths, coupled=True, probabilities=probabilities)
        assert drawn_samples(weighting, index, "sampling.weights") == rates.epoch_samples == drawn
        assert json.loads((folder / "rates/rates.json").read_text())["epoch_samples"] == drawn
        assert paired_samples(weighting, TOTAL, "sampling.weights") == NUM_MEMBERS
    assert paired_samples(Weighting(weights=paths["weights"], coupled=True), TOTAL, "sampling.weights") == TOTAL


def test_members_are_read_again(tmp_path: Path) -> None:
    """Reopened with hashes compared: membership of 1 and 0 exactly; of version 2, so no older Bamboo trains on all; names differ."""
    order = probable(tmp_path)
    again = open_rates(tmp_path / "rates", COUNTS, verify=True)
    assert again.second is None
    assert again.members is not None
    assert np.array_equal(rates_of(again.members), MEMBERS)
    assert int(again.members.starts[-1]) == NUM_MEMBERS * ONE
    recipe = PlanRecipe(3, 3, coupled=True, sources=(PlannedSource("a", 0, "rates"),))
    assert np.array_equal(recipe.order([COUNTS], tmp_path, 0).take(0, 500).ids, order.take(0, 500).ids)
    card = json.loads((tmp_path / "rates/rates.json").read_text())
    assert (card["version"], list(card["files"])) == (2, ["members-rates.npy", "members-starts.npy"])
    settings = {"weights": tmp_path / "weights.npy", "probabilities": True}
    seconds = {"coupled": True, "second": tmp_path / "members.npy"}
    names = {rates_identity(Weighting(**settings, **more), "data") for more in ({}, {"coupled": True}, seconds)}
    assert len(names) == 3


def test_several_folders_keep_to_their_members(tmp_path: Path) -> None:
    """A folder with members beside a coupled one without: three pairs of both see each member of the one and all of the other once."""
    names = ("a", "b")
    for name in names:
        (tmp_path / name).mkdir()
    coupled(tmp_path / "a", GAINS, MEMBERS.astype(np.float32), probabilities=True)
    compiled(tmp_path / "b", COUNTS[:1], np.full(100, 0.3), probabilities=True, coupled=True)
    sources = tuple(PlannedSource(name, 50, f"{name}/rates") for name in names)
    order: SampleOrder = PlanRecipe(0, 4, coupled=True, sources=sources).order([COUNTS, COUNTS[:1]], tmp_path, 0)
    pair = NUM_MEMBERS + 100
    wanted = [*np.flatnonzero(MEMBERS).tolist(), *range(TOTAL, TOTAL + 100)]
    assert order.boundary(1) == pair
    assert all(sorted(ids) == wanted for ids in order.take(0, 3 * pair).ids.reshape(3, pair).tolist())


def with_one(values: npt.NDArray[np.generic], place: int, value: float) -> Floats:
    """Returns the column with one value changed."""
    changed = values.astype(np.float64)
    changed[place] = value
    return changed


OUTSIDE, INSIDE = int(np.flatnonzero(~MEMBERS)[3]), int(np.flatnonzero(GAINS)[5])


@pytest.mark.parametrize(
    ("weights", "members", "options", "message"),
    [
        (with_one(GAINS, OUTSIDE, 0.25), MEMBERS, {}, f"weights.npy: sample {OUTSIDE} has the weight 0.25, and 0 in"),
        (GAINS, with_one(MEMBERS, INSIDE, 0), {}, f"weights.npy: sample {INSIDE} has the weight"),
        (GAINS, with_one(MEMBERS, OUTSIDE, 0.5), {}, f"members.npy: sample {OUTSIDE} has 0.5: .* give 1 or 0"),
        (GAINS, with_one(MEMBERS, INSIDE, 2), {}, f"members.npy: sample {INSIDE} has 2: "),
        (GAINS, with_one(MEMBERS, 7, np.nan), {}, "members.npy: sample 7 has nan"),
        (GAINS, MEMBERS[:-1], {}, f"members.npy: holds {TOTAL - 1} numbers for {TOTAL} samples"),
        (GAINS * 0, MEMBERS & False, {}, "weights.npy: every weight is 0"),
        (GAINS * 0, MEMBERS, {}, "weights.npy: every weight is 0"),
        (GAINS * 0, MEMBERS & False, {"probabilities": True}, "weights.npy: every weight is 0"),
        (GAINS, MEMBERS, {"epoch_samples": NUM_MEMBERS}, "cannot be drawn; allowed: 1 to"),
        (GAINS, MEMBERS, {"grouped": True}, "coupled=True with grouped=True"),
        (None, MEMBERS, {}, "needs a first"),
    ],
)
def test_members_that_cannot_be_are_named(
    tmp_path: Path, weights: Floats | None, members: npt.NDArray[np.generic], options: dict[str, int], message: str
) -> None:
    """Weights of others, what is neither 1 nor 0, of another length, none at all, longer than can be, grouped: UserError, nothing left."""
    np.save(tmp_path / "members.npy", members.astype(np.float32))
    if weights is not None:
        np.save(tmp_path / "weights.npy", weights)
    path = None if weights is None else tmp_path / "weights.npy"
    weighting = Weighting(weights=path, second=tmp_path / "members.npy", coupled=True, **options)  # type: ignore[arg-type]  # by name
    with pytest.raises(UserError, match=message):
        compile_rates(weighting, index_of(COUNTS), COUNTS, tmp_path / "rates", "sampling.weights")
    assert not list(tmp_path.glob("*rates*"))


def test_altered_members_are_found(tmp_path: Path) -> None:
    """A byte changed: named when hashes are compared, and when its shard is read; the file gone: named when it is opened."""
    probable(tmp_path)
    path = tmp_path / "rates/members-rates.npy"
    rates = open_rates(tmp_path / "rates", COUNTS)
    assert rates.members is not None
    with path.open("r+b") as file:
        file.seek(rates.members.data_offset)
        file.write(np.where(MEMBERS[:100], 0, ONE).astype(np.uint32).tobytes())
    with pytest.raises(DataError, match=r"members-rates.npy: altered"):
        open_rates(tmp_path / "rates", COUNTS, verify=True)
    with pytest.raises(DataError, match="members of shard 0 do not add up"):
        Order(COUNTS, seed=0, window=9, rates=rates, coupled=True).take(0, NUM_MEMBERS)
    path.unlink()
    with pytest.raises(DataError, match="no readable weight column"):
        open_rates(tmp_path / "rates", COUNTS)
