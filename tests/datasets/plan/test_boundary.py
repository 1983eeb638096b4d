"""Where epochs end, against the epochs laid end to end."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from bamboo.datasets.plan.history import VersionedOrder
from bamboo.datasets.plan.mixture import MixedOrder
from bamboo.datasets.plan.order import Order, SampleOrder
from tests.datasets.plan.columns import compiled

COUNTS = np.array([13, 0, 40, 47])


def check(order: SampleOrder, begins: Sequence[int]) -> None:
    """Fails unless the boundary at each position is the first of `begins` from there on."""
    for position in range(begins[-1] + 1):
        assert order.boundary(position) == min(begin for begin in begins if begin >= position), position


def test_boundaries(tmp_path: Path) -> None:
    """Epochs of all 100 samples, of the 37 that weights draw, coupled pairs of 100, a mixture's of 50; one order after another."""
    plain = Order(COUNTS, seed=0, window=2)
    check(plain, [0, 100, 200, 300])
    rates = compiled(tmp_path, COUNTS, np.full(100, 0.37), probabilities=True)
    weighted = Order(COUNTS, seed=0, window=2, rates=rates)
    check(weighted, [0, 37, 74, 111])
    check(Order(COUNTS, seed=0, window=2, rates=rates, coupled=True), [0, 100, 200])
    check(MixedOrder([plain, weighted], [30, 20], num_samples=[100, 100], num_shards=[4, 4], seed=0), [0, 50, 100, 150])
    versioned = VersionedOrder([10, 60], [plain, weighted])
    assert [versioned.boundary(position) for position in (10, 11, 59, 60, 61, 97, 98)] == [10, 110, 110, 60, 97, 97, 134]


@pytest.mark.parametrize("coupled", [False, True])
def test_an_epoch_begins_there(tmp_path: Path, coupled: bool) -> None:
    """Before a boundary and after it the samples of whole epochs: as many of each as its rate allows, of coupled pairs one."""
    rates = compiled(tmp_path, COUNTS, np.random.default_rng(0).uniform(0, 1, 100), probabilities=True)
    order = Order(COUNTS, seed=0, window=2, rates=rates, coupled=coupled)
    first = order.boundary(1)
    second = order.boundary(first + 1)
    for start, stop in ((0, first), (first, second)):
        visits = np.bincount(order.take(start, stop).ids, minlength=100)
        assert (visits == 1).all() if coupled else visits.max() == 1
        assert stop - start == (100 if coupled else rates.epoch_samples)
