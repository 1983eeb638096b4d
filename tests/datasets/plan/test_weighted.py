"""Weighted orders: how often each sample is seen against its rate, and the rates against their definition."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from bamboo.cli.errors import DataError, UserError
from bamboo.datasets.plan.order import Order
from bamboo.datasets.plan.rates import ONE, open_rates
from tests.datasets.plan.columns import compiled, rates_of

COUNTS = np.array([100, 0, 1, 50, 200, 3], np.int64)
TOTAL = int(COUNTS.sum())
EPOCHS = 200
WEIGHTS = np.random.default_rng(0).exponential(size=TOTAL)

Floats = npt.NDArray[np.float64]


def visits(order: Order, epochs: int) -> npt.NDArray[np.int64]:
    """Returns int64[epochs, TOTAL] visits of every sample in every epoch."""
    length = order.epoch_samples
    ids = order.take(0, epochs * length).ids.reshape(epochs, length)
    return np.array([np.bincount(row, minlength=TOTAL) for row in ids])


def assert_binomial(counted: npt.NDArray[np.int64], rates: Floats) -> None:
    """Every epoch sees a sample ⌊rate⌋ or ⌈rate⌉ times, and the mean over epochs lies within 4.5 binomial standard errors."""
    assert (np.abs(counted - rates) < 1).all()
    share = rates - np.floor(rates)
    error = np.sqrt(share * (1 - share) / len(counted))
    z = (counted.mean(0) - rates)[error > 0.01] / error[error > 0.01]
    assert np.abs(z).max() < 4.5
    assert 0.8 < z.std() < 1.25, "epochs must be drawn independently: neither too even nor clumped"


@pytest.mark.parametrize(
    "options", [{}, {"epoch_samples": 100}, {"epoch_samples": 1000, "max_repeats": 6.0}, {"max_repeats": 1.5, "epoch_samples": 300}]
)
def test_inclusion_matches_the_rates(tmp_path: Path, options: dict[str, float]) -> None:
    """200 epochs of weighted plans: inclusion of every sample within binomial error of its rate."""
    rates = compiled(tmp_path, COUNTS, WEIGHTS, **options)
    order = Order(COUNTS, seed=1, window=3, rates=rates)
    assert order.epoch_samples == options.get("epoch_samples", TOTAL)
    assert_binomial(visits(order, EPOCHS), rates_of(rates))


def test_probabilities_are_taken_as_they_stand(tmp_path: Path) -> None:
    """Inclusion probabilities: rates equal them but for the rounding of the epoch's length (half a sample in all) and of 2⁻²⁴."""
    probabilities = np.random.default_rng(1).uniform(size=TOTAL)
    rates = compiled(tmp_path, COUNTS, probabilities, probabilities=True)
    assert rates.epoch_samples == round(probabilities.sum())
    expected = probabilities * rates.epoch_samples / probabilities.sum()
    assert np.abs(rates_of(rates) - np.minimum(expected, 1)).max() < 1e-6 + 0.5 / probabilities.sum()
    assert_binomial(visits(Order(COUNTS, seed=2, window=4, rates=rates), EPOCHS), rates_of(rates))


def test_two_coupled_epochs_see_everything_once(tmp_path: Path) -> None:
    """Fifty pairs of epochs: each pair is a permutation of all samples; the first of a pair matches the rates."""
    rates = compiled(tmp_path, COUNTS, WEIGHTS, coupled=True, epoch_samples=140)
    order = Order(COUNTS, seed=3, window=3, rates=rates, coupled=True)
    ids = order.take(0, EPOCHS * TOTAL).ids.reshape(EPOCHS, TOTAL)
    assert all(np.array_equal(np.sort(pair), np.arange(TOTAL)) for pair in ids)
    first = np.array([np.bincount(pair[:140], minlength=TOTAL) for pair in ids])
    assert_binomial(first, rates_of(rates))
    assert not np.array_equal(ids[0, :140], ids[1, :140])


@pytest.mark.parametrize(("size", "length"), [(1, 10), (1, 40), (2, 10), (50, 40)])
def test_any_two_rows_may_meet(tmp_path: Path, size: int, length: int) -> None:
    """Shards of which each gives less than one row: how often two rows of different shards are drawn together, against chance (6 σ)."""
    counts = np.full(100 if size == 1 else 50, size, np.int64)
    total, epochs = int(counts.sum()), 800
    rates = compiled(tmp_path, counts, np.ones(total), epoch_samples=length)
    order = Order(counts, seed=7, window=4, rates=rates)
    seen = np.zeros((epochs, len(counts)))
    for epoch, ids in enumerate(order.take(0, epochs * length).ids.reshape(epochs, length)):
        seen[epoch] = np.bincount(ids // size, minlength=len(counts)) > 0
    together = (seen.T @ seen)[np.triu_indices(len(counts), 1)] / epochs
    chance = seen.mean() * (seen.mean() * len(counts) - 1) / (len(counts) - 1)
    assert np.abs(together - chance).max() < 6 * (chance * (1 - chance) / epochs) ** 0.5
    assert together.min() > 0 or chance * epochs < 12


def test_copies_of_a_sample_are_set_apart(tmp_path: Path) -> None:
    """A sample taken up to six times an epoch: its visits have different keys, and neighbours hold it less than 3 × chance."""
    counts = np.full(20, 50, np.int64)
    weights = np.where(np.arange(1000) % 10 == 0, 6.0, 0.5)
    order = Order(counts, seed=0, window=10, rates=compiled(tmp_path, counts, weights))
    seen = order.take(0, 5 * order.epoch_samples)
    assert len(set(zip(seen.ids.tolist(), seen.keys.tolist(), strict=True))) == len(seen.ids)
    shares = np.bincount(seen.ids, minlength=1000) / len(seen.ids)
    # Within a slot, about a twentieth of the epoch, ten shards take part: chance there is about twice that of the whole epoch.
    assert np.mean(np.diff(seen.ids) == 0) < 3 * 2 * float((shares**2).sum())


@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(lambda counts: sum(counts) > 1),
    seed=st.integers(0, 10**6),
    window=st.integers(1, 9),
    share=st.floats(0.05, 0.95),
    coupled=st.booleans(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_any_weights_any_shards(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], seed: int, window: int, share: float, coupled: bool
) -> None:
    """Random shards and weights: epochs have exactly their length, and any sample is seen ⌊rate⌋ or ⌈rate⌉ times in each."""
    shards, total = np.array(counts, np.int64), sum(counts)
    weights = np.random.default_rng(seed).exponential(size=total) ** 3 + 1e-6
    length = max(1, round(share * total))
    rates = compiled(tmp_path_factory.mktemp("column"), shards, weights, epoch_samples=length, coupled=coupled)
    order = Order(shards, seed=seed, window=window, rates=rates, coupled=coupled)
    seen = np.bincount(order.take(0, length).ids, minlength=total)
    assert seen.sum() == length
    assert (np.abs(seen - rates_of(rates)) < 1).all()
    if coupled:
        assert np.array_equal(np.sort(order.take(0, total).ids), np.arange(total))


@pytest.mark.parametrize("cap", [1.0, 2.0, 8.0])
def test_rates_solve_the_water_filling(tmp_path: Path, cap: float) -> None:
    """min(cap, τ w) with τ from scipy's root finder; the sum is whole in fixed point."""
    rates = compiled(tmp_path, COUNTS, WEIGHTS**2, max_repeats=cap, epoch_samples=300)
    root = brentq(lambda scale: np.minimum(cap, scale * WEIGHTS**2).sum() - 300, 1e-9, 1e9, xtol=1e-14)
    assert rates_of(rates) == pytest.approx(np.minimum(cap, root * WEIGHTS**2), abs=1e-6)
    assert int(rates.starts[-1]) == 300 * ONE


def test_balance_is_the_class_frequency_to_the_power(tmp_path: Path) -> None:
    """γ = ½ and 1 on classes of 5 to 160 images: rates against n_c^-γ, normalised; several classes: the rarest counts."""
    labels = [[0]] * 160 + [[1]] * 100 + [[2]] * 60 + [[0, 3]] * 29 + [[3]] * 5
    frequencies = np.array([189, 100, 60, 34])
    for number, power in enumerate((0.5, 1.0)):
        folder = tmp_path / str(number)
        folder.mkdir()
        rates = compiled(folder, COUNTS, None, labels, balance=power, max_repeats=100.0)
        expected = np.array([max(frequencies[label] ** -power for label in row) for row in labels])
        assert rates_of(rates) == pytest.approx(expected * TOTAL / expected.sum(), rel=1e-5)


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        (np.ones(5), {}, "5 numbers for 354 samples"),
        (np.zeros(TOTAL), {}, "every weight is 0"),
        (np.where(np.arange(TOTAL) == 7, -1.0, 1.0), {}, "sample 7 has -1.0"),
        (np.where(np.arange(TOTAL) == 9, np.nan, 1.0), {}, "sample 9 has nan"),
        (np.ones(TOTAL), {"epoch_samples": 10_000}, "cannot be drawn; allowed: 1 to 2,832"),
        (np.full(TOTAL, 1.5), {"probabilities": True, "max_repeats": 1.0}, "a probability of 1.5 is above 1"),
        (np.ones((TOTAL, 2)), {}, "one .npy column"),
        (np.concatenate([1e300 ** (np.arange(120) / 119), np.ones(TOTAL - 120) * 1e-300]), {"max_repeats": 1.0}, "orders of magnitude"),
        (None, {"balance": 1.0}, "needs labels, and sample 0 has none"),
    ],
)
def test_impossible_weights_are_named(tmp_path: Path, weights: Floats | None, options: dict[str, float], message: str) -> None:
    """Wrong columns and epochs that cannot be: an error that names the setting and the sample, and no folder left behind."""
    with pytest.raises(UserError, match=message) as caught:
        compiled(tmp_path, COUNTS, weights, **options)
    assert "sampling." in str(caught.value)
    assert not (tmp_path / "rates").exists()
    assert not list(tmp_path.glob(".rates*"))


def test_a_damaged_column_is_named(tmp_path: Path) -> None:
    """A truncated, a foreign and a pickled file: DataError or UserError with the path, never numpy's."""
    rates = compiled(tmp_path, COUNTS, WEIGHTS)
    with pytest.raises(DataError, match="the data has others"):
        open_rates(tmp_path / "rates", COUNTS[:-1])
    with (tmp_path / "rates" / "rates.npy").open("r+b") as file:
        file.truncate(900)
    with pytest.raises(DataError, match="rates"):
        open_rates(tmp_path / "rates", COUNTS)
    with pytest.raises(DataError, match="truncated"):
        rates.of_shard(4)
    with pytest.raises(DataError, match="rates"):
        open_rates(tmp_path / "rates", COUNTS, verify=True)
    with pytest.raises(DataError, match="no readable weight column"):
        open_rates(tmp_path / "nowhere", COUNTS)


def test_an_altered_column_is_found(tmp_path: Path) -> None:
    """Sixty rates zeroed behind the run's back: named when its hash is compared, and when its shard is read, never an IndexError."""
    rates = compiled(tmp_path, COUNTS, WEIGHTS)
    with (tmp_path / "rates" / "rates.npy").open("r+b") as file:
        file.seek(rates.data_offset + 4 * 160)
        file.write(b"\0" * 240)
    with pytest.raises(DataError, match="altered"):
        open_rates(tmp_path / "rates", COUNTS, verify=True)
    with pytest.raises(DataError, match="do not add up"):
        Order(COUNTS, seed=0, window=9, rates=open_rates(tmp_path / "rates", COUNTS)).take(0, TOTAL)
