"""The path over λ: one warm-started descent from strong to weak regularisation, scored on validation rows at every value.

Shape letters as in solver.py; M validation rows.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import torch

from .lbfgs import History, decrement_below, minimise
from .objective import Point
from .solver import Problem, full_float32


@dataclasses.dataclass(frozen=True)
class PathPoint:
    """One value of the path: μ = λ / n, the loss on the training rows and the scores on the validation rows."""

    ridge: float
    train_loss: float
    train_accuracy: float
    val_score: float
    """The metric that selects, in [0, 1]."""

    val_loss: float
    """Mean cross-entropy on the validation rows."""

    iterations: int


@dataclasses.dataclass(frozen=True, eq=False)
class Path:
    """The values that were visited, strongest first, with what is needed to go on from the best one."""

    points: tuple[PathPoint, ...]
    best: int
    """Index of the highest val_score; among equals the lowest val_loss."""

    best_parameters_JE: torch.Tensor
    passes: int


Score = Callable[[torch.Tensor], float]
"""Maps predictions int64[M] of the validation rows (ids of present classes) to the metric that selects."""


def sweep(
    problem: Problem,
    num_train: int,
    ridges: Sequence[float],
    score: Score,
    *,
    tolerance: float = 1e-4,
    floor_share: float = 0.01,
    patience: int = 6,
    max_iterations: int = 1000,
) -> Path:
    """Solves the first `num_train` rows at each μ of `ridges` (falling), and scores the rows after them.

    Each solve starts where the last one ended, with its L-BFGS memory, and stops at decrement ≤ tolerance · max(F, floor_share · log J).
    The path ends early when every training row is right and the last `patience` values have not improved the score: from there only the
    norm of W grows.
    """
    assert all(first > second for first, second in itertools.pairwise(ridges)), "the path runs from strong to weak"
    objective, validation = problem.objective(num_train), problem.validation(num_train)
    stop = decrement_below(tolerance, floor_share * math.log(max(len(problem.present_J), 2)))
    points: list[PathPoint] = []
    history, best = History(), -1
    with full_float32():
        point = objective.start()
        best_parameters_JE = point.parameters_KE
        for ridge in ridges:
            descent = minimise(objective, problem.gram, ridge, point, history, stop, max_iterations=max_iterations)
            point = descent.point
            logits_MJ = validation.forward(point.parameters_KE)
            val_loss, _ = validation.loss(logits_MJ)
            right = _accuracy(point, objective.labels_N1)
            points.append(PathPoint(ridge, point.loss, right, score(logits_MJ.argmax(1)), val_loss, descent.iterations))
            if best < 0 or _rank(points[-1]) > _rank(points[best]):
                best, best_parameters_JE = len(points) - 1, point.parameters_KE
            if right == 1.0 and len(points) - 1 - best >= patience:
                break
    return Path(tuple(points), best, best_parameters_JE, objective.passes)


def _rank(point: PathPoint) -> tuple[float, float]:
    return point.val_score, -point.val_loss


def _accuracy(point: Point, labels_N1: torch.Tensor) -> float:
    return float((point.logits_NK.argmax(1) == labels_N1[:, 0]).sum()) / len(labels_N1)
