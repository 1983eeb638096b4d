"""The search of few values of a fine grid, against solving all of it."""

import numpy as np
import pytest
import torch

from bamboo.linear_probe.protocols.parametric import parametric_sweep
from bamboo.linear_probe.solver.problem import Problem, open_problem
from bamboo.linear_probe.solver.path import sweep
from tests.linear_probe.clouds import sides

GRID = tuple(10.0 ** (6 - step / 8) / 400 for step in range(97))


def problem() -> Problem:
    train, _ = sides()
    return open_problem(train.features, train.labels, np.arange(600), 5, device=torch.device("cpu"))


def test_fifteen_of_ninety_seven_values() -> None:
    """Equal scores everywhere, so the lowest validation loss is best: 15 values, and no loss on the whole grid is lower."""
    path = parametric_sweep(problem(), 400, GRID, lambda predictions: 0.0, coarse=16, tolerance=1e-6, floor_share=0.01)
    solved = [GRID.index(point.ridge) for point in path.points]
    assert set(range(0, 97, 16)) <= set(solved)
    assert len(solved) == 15
    assert solved == sorted(solved)
    whole = sweep(problem(), 400, GRID, lambda predictions: 0.0, tolerance=1e-6, patience=97)
    assert len(whole.points) == 97
    assert path.points[path.best].ridge == whole.points[whole.best].ridge
    assert path.points[path.best].val_loss == pytest.approx(whole.points[whole.best].val_loss, rel=1e-3)
    assert path.best_parameters_JE.shape == (5, 17)


def test_a_coarse_step_that_cannot_be_halved_is_refused() -> None:
    """coarse = 12: not a power of two."""
    with pytest.raises(ValueError, match="power of two"):
        parametric_sweep(problem(), 400, GRID, lambda predictions: 0.0, coarse=12, tolerance=1e-3, floor_share=0.01)
