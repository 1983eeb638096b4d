"""Weights of losses against the formula worked out densely, and against the mean that they are to keep."""

import math
import pickle
from pathlib import Path

import numpy as np
import pytest

from bamboo.cli.errors import DataError
from bamboo.datasets.plan.loss_weights import LossWeights, version_weights
from bamboo.datasets.plan.order import Order
from bamboo.datasets.plan.recipe import PlannedSource, PlanRecipe
from tests.datasets.plan.columns import compiled, rates_of

COUNTS = np.array([13, 0, 40, 47])
OTHERS = np.array([20, 11])


def random_weights(num_samples: int, seed: int) -> np.ndarray:
    """Returns weights over two orders of magnitude, one in seven of them 0."""
    values = 10 ** np.random.default_rng(seed).uniform(-1, 1, num_samples)
    values[::7] = 0
    return values


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_a_mixture_against_the_formula(tmp_path: Path, beta: float) -> None:
    """A weighted folder and an even one, 60 and 30 places an epoch: (1 / p) ** β over its mean, p being rate · quota / own epoch."""
    rates = compiled(tmp_path, COUNTS, random_weights(100, 0))
    recipe = PlanRecipe(0, 4, False, (PlannedSource("a", 60, "rates"), PlannedSource("b", 30, "")))
    weights = version_weights(recipe, [COUNTS, OTHERS], tmp_path, beta)
    visits = np.concatenate([rates_of(rates) * 60 / 100, np.full(31, 30 / 31)])
    drawn = visits > 0
    expected = np.ones(131)
    expected[drawn] = visits[drawn] ** -beta / ((visits[drawn] ** (1 - beta)).sum() / visits.sum())
    ids = np.random.default_rng(1).permutation(131)
    assert np.allclose(weights.of(ids), expected[ids], rtol=1e-12)
    assert (visits * weights.of(np.arange(131))).sum() / visits.sum() == pytest.approx(1, rel=1e-12), "the mean over what is drawn"


def test_the_full_correction_is_unbiased(tmp_path: Path) -> None:
    """β = 1 over 400 epochs: the mean of weight · loss within three standard errors of the plain mean; without weights it is not."""
    rates = compiled(tmp_path, COUNTS, random_weights(100, 2))
    weights = version_weights(PlanRecipe(0, 4, False, (PlannedSource("a", 0, "rates"),)), [COUNTS], tmp_path, 1.0)
    losses = random_weights(100, 2) + np.random.default_rng(3).uniform(0, 1, 100)  # greater where more is drawn
    ids = Order(COUNTS, seed=7, window=4, rates=rates).take(0, 400 * 100).ids.reshape(400, 100)
    means = np.array([(weights.of(epoch) * losses[epoch]).mean() for epoch in ids])
    truth, error = losses[rates_of(rates) > 0].mean(), means.std(ddof=1) / math.sqrt(400)
    assert abs(means.mean() - truth) < 3 * error
    assert abs(losses[ids].mean() - truth) > 100 * error


def test_each_version_has_its_own(tmp_path: Path) -> None:
    """Positions before and from 50 on; what a version does not draw weighs 1; the same after pickling, as a worker has it."""
    (tmp_path / "first").mkdir()
    compiled(tmp_path / "first", COUNTS, random_weights(100, 0))
    versions = [
        version_weights(PlanRecipe(0, 4, False, (PlannedSource("a", 0, rates),)), [COUNTS], tmp_path / "first", 0.5)
        for rates in ("rates", "")
    ]
    weights = pickle.loads(pickle.dumps(LossWeights([10, 50], versions)))
    found = weights.of(np.array([10, 49, 50, 60, 49]), np.array([3, 4, 3, 4, 130]))
    assert found.dtype == np.float32
    assert found.tolist() == pytest.approx([*versions[0].of(np.array([3, 4])), 1, 1, 1])


def test_rows_are_read_one_by_one(tmp_path: Path) -> None:
    """Any rows against the rates read by shard; of a file that was cut, DataError."""
    rates = compiled(tmp_path, COUNTS, random_weights(100, 0))
    rows = np.random.default_rng(4).integers(0, 100, 300)
    assert (rates.of_rows(rows) == np.concatenate([rates.of_shard(shard) for shard in range(4)])[rows]).all()
    with (rates.folder / "rates.npy").open("r+b") as file:
        file.truncate(rates.data_offset + 4 * 50)
    with pytest.raises(DataError, match="truncated"):
        rates.of_rows(rows)
