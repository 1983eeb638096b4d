"""The search of few values of a fine grid: against solving all of it, and each value against scikit-learn."""

import warnings

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from bamboo.linear_probe.protocols.outcome import Outcome, Rows
from bamboo.linear_probe.protocols.parametric import parametric_sweep
from bamboo.linear_probe.protocols.registry import CLIP, STANDARD
from bamboo.linear_probe.solver.path import sweep
from bamboo.linear_probe.solver.problem import Problem, open_problem
from tests.linear_probe.clouds import sides

GRID = tuple(10.0 ** (6 - step / 8) / 400 for step in range(97))


def problem() -> Problem:
    train, _ = sides()
    return open_problem(train.features, train.labels, np.arange(600), 5, device=torch.device("cpu"))


def test_fifteen_of_ninety_seven_values() -> None:
    """Equal scores everywhere, so the lowest validation loss is best: 15 values, and no loss on the whole grid is lower."""
    path = parametric_sweep(problem(), 400, GRID, lambda predictions: 0.0, coarse=16, tolerance=1e-6)
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
        parametric_sweep(problem(), 400, GRID, lambda predictions: 0.0, coarse=12, tolerance=1e-3)


def rectified(num_train: int, num_features: int, spread: float, seed: int) -> tuple[Rows, Rows]:
    """Returns rows of 5 classes whose features are ≥ 0 and of scales that differ tenfold, as a network's are."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(5, num_features)) * spread
    labels = random.integers(0, 5, num_train + 100)
    wide = np.maximum(centres[labels] + random.normal(size=(len(labels), num_features)) + 0.3, 0.0)
    features = (wide * np.exp(random.normal(size=num_features))).astype(np.float32)
    return Rows(features[:num_train], labels[:num_train]), Rows(features[num_train:], labels[num_train:])


def rows_right(train: Rows, outcome: Outcome, penalty: float) -> int:
    """Returns how many validation rows scikit-learn (float64, tolerance 1e-12) has right at λ = `penalty` on the rows that train."""
    assert outcome.split is not None
    features: npt.NDArray[np.float64] = train.features.astype(np.float64)
    features -= features.mean(0)
    fitted, held = outcome.split.train, outcome.split.val
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # at a strong penalty rounding ends it before the tolerance is met
        model = LogisticRegression(C=1 / penalty, tol=1e-12, max_iter=20_000).fit(features[fitted], train.labels[fitted])
    return int((model.predict(features[held]) == train.labels[held]).sum())


@pytest.mark.parametrize(("rows", "width", "spread", "seed"), [(250, 128, 0.3, 0), (250, 128, 0.3, 1), (400, 16, 0.5, 0)])
def test_every_scored_value_is_solved(rows: int, width: int, spread: float, seed: int) -> None:
    """`clip` on rows that are interpolated (fewer that train than parameters of a class twice over) and not: scikit-learn's score at
    every λ that was scored, to one validation row."""
    train, test = rectified(rows, width, spread, seed)
    outcome = CLIP.evaluate(train, test, 5, "top1")
    assert outcome.curve is not None
    assert len(outcome.curve.points) >= 11
    for point in outcome.curve.points:
        assert abs(point.val_score * outcome.num_val - rows_right(train, outcome, point.x)) <= 1 + 1e-6
    weakest = outcome.curve.points[-1].train_score
    assert weakest is not None
    assert (weakest == 1.0) == (width == 128)


def test_the_value_that_standard_chooses_is_solved() -> None:
    """`standard` on interpolated rows: the chosen value's validation score is scikit-learn's there, to one row."""
    train, test = rectified(250, 128, 0.3, 0)
    outcome = STANDARD.evaluate(train, test, 5, "top1")
    assert outcome.curve is not None
    assert outcome.split is not None
    score = outcome.curve.points[outcome.curve.chosen].val_score * outcome.num_val
    assert abs(score - rows_right(train, outcome, outcome.chosen["penalty"] * len(outcome.split.train) / outcome.num_train)) <= 1 + 1e-6


def test_what_did_not_converge_is_not_chosen() -> None:
    """Two iterations at most, every value scored: the one of the lowest loss took both, without an end; one that ended sooner is chosen."""
    path = parametric_sweep(problem(), 400, GRID[::4], lambda predictions: 0.0, coarse=1, tolerance=1e-6, max_iterations=2)
    assert min(path.points, key=lambda point: point.val_loss).iterations == 2
    assert path.points[path.best].iterations < 2
