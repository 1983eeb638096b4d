"""The path over λ: one warm-started descent from strong to weak regularisation, scored on validation rows at every value.

Shape letters as in problem.py; M validation rows.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch

from .feature_rows import MEMORY_SHARE, free_bytes
from .lbfgs import Descent, History, decrement_below, minimise_all
from .objective import Objective, Point, Points
from .problem import Problem, full_float32

_LONGEST_RUN = 8


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
    batch: bool | Literal["auto"] = "auto",
) -> Path:
    """Solves the first `num_train` rows at each μ of `ridges` (falling), and scores the rows after them.

    Each solve starts where the last one ended, with its L-BFGS memory, and stops at decrement ≤ tolerance · max(F, floor_share · log J).
    The path ends early when every training row is right and the last `patience` values have not improved the score: from there only the
    norm of W grows.

    Args:
        batch: solve runs of neighbouring values together (`run_length` of them), each from where the weakest value of the last run ended.
            From the first run that would start below the floor on, values are solved one by one: from afar a descent overshoots there,
            and meets the rule at a point that classifies otherwise than the optimum. "auto": where it pays, on a GPU. Joint iterations
            are a fifth fewer than those of the warm path, but each is for all values of its run: 1.2 to 3 times the CPU time at
            3,000 to 16,000 rows.
    """
    assert all(first > second for first, second in itertools.pairwise(ridges)), "the path runs from strong to weak"
    objective, validation = problem.objective(num_train), problem.validation(num_train)
    floor = floor_share * math.log(max(len(problem.present_J), 2))
    together = objective.rows.device.type != "cpu" if batch == "auto" else batch
    length = run_length(objective) if together else 1
    stop, points, best, history = decrement_below(tolerance, floor), list[PathPoint](), -1, History()
    with full_float32():
        point = objective.start()
        best_parameters_JE = point.parameters_KE
        while len(points) < len(ridges):
            run = ridges[len(points) :][: length if point.value(ridges[len(points)]) > floor else 1]
            starts = Points.of(point, len(run))
            descents = minimise_all(objective, problem.gram, run, starts, history, stop, max_iterations=max_iterations)
            if len(run) > 1:
                history = History()  # what the batch remembered belongs to other values
            for ridge, descent in zip(run, descents, strict=True):
                point = descent.point
                points.append(_scored(objective, validation, ridge, descent, score))
                if best < 0 or _rank(points[-1]) > _rank(points[best]):
                    best, best_parameters_JE = len(points) - 1, point.parameters_KE
                if points[-1].train_accuracy == 1.0 and len(points) - 1 - best >= patience:
                    return Path(tuple(points), best, best_parameters_JE, objective.passes)
    return Path(tuple(points), best, best_parameters_JE, objective.passes)


def _scored(objective: Objective, validation: Objective, ridge: float, descent: Descent, score: Score) -> PathPoint:
    logits_MJ = validation.forward(descent.point.parameters_KE)
    val_loss, _ = validation.loss(logits_MJ)
    right = _accuracy(descent.point, objective.labels_N1)
    return PathPoint(ridge, descent.point.loss, right, score(logits_MJ.argmax(1)), val_loss, descent.iterations)


def run_length(objective: Objective) -> int:
    """Returns how many neighbouring values of λ are solved together: at most 8, and no more than half the free memory holds.

    A problem of a batch takes four [K, N] arrays (point, direction, residual, and a copy of one where another leaves) and 20 [K, E] float64
    steps of L-BFGS. Eight, because the farther a value lies from its start, the more iterations it takes.
    """
    itemsize = torch.finfo(objective.dtype).bits // 8
    logits_bytes = 4 * itemsize * len(objective) * objective.num_classes
    memory_bytes = 20 * 8 * objective.num_classes * (objective.rows.num_features + 1)
    return int(min(_LONGEST_RUN, max(1, MEMORY_SHARE * free_bytes(objective.rows.device) // (logits_bytes + memory_bytes))))


def _rank(point: PathPoint) -> tuple[float, float]:
    return point.val_score, -point.val_loss


def _accuracy(point: Point, labels_N1: torch.Tensor) -> float:
    return float((point.logits_KN.argmax(0) == labels_N1[:, 0]).sum()) / len(labels_N1)
