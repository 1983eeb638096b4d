"""A search over λ that scores few values of a fine grid: coarse ones first, then ever closer neighbours of the best.

Shape letters as in solver/problem.py; M validation rows.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import torch

from ..solver.lbfgs import History, decrement_within, minimise
from ..solver.objective import Objective
from ..solver.path import Path, PathPoint, Score
from ..solver.problem import Problem, full_float32


@dataclasses.dataclass(frozen=True, eq=False)
class _Solution:
    """The optimum at one value: its parameters in float32, loss and accuracy on the rows that train, and what it took."""

    parameters_KE: torch.Tensor
    train_loss: float
    train_accuracy: float
    iterations: int
    converged: bool


def parametric_sweep(
    problem: Problem,
    num_train: int,
    ridges: Sequence[float],
    score: Score,
    *,
    coarse: int,
    tolerance: float,
    max_iterations: int = 1000,
) -> Path:
    """Scores every `coarse`-th of `ridges` (falling), then at each halving of the spacing both neighbours of the best value so far.

    Every value of the grid is solved, from strong to weak, each from the optimum of the one before and with its L-BFGS memory, whether it
    is scored or not: where rows are interpolated, a descent that comes from afar may end beside the optimum, with predictions of its own.
    A solve stops at decrement ≤ tolerance · min(F, what F has lost since W = 0). The best has the highest score on the rows after the
    first `num_train`; among equals the lowest validation loss. A value whose descent did not reach the tolerance is best only where none
    did. Of 97 values at `coarse` = 16 these are 7 + 4 × 2 = 15 scores, fewer where the best lies at an end.

    Memory: the parameters of every value in float32.

    Returns:
        The values that were scored, strongest first; the iterations of a value are those since the one before.

    Raises:
        ValueError: when `coarse` is no power of two.
    """
    if coarse < 1 or coarse & (coarse - 1):
        raise ValueError(f"coarse={coarse}: must be a power of two")
    assert all(first > second for first, second in itertools.pairwise(ridges)), "the grid runs from strong to weak"
    objective, validation = problem.objective(num_train), problem.validation(num_train)
    ranks: dict[int, tuple[bool, float, float]] = {}
    with full_float32():
        solutions = _solve(problem, objective, ridges, tolerance, max_iterations)

        def rank(at: int) -> None:
            logits_MK = validation.forward(solutions[at].parameters_KE)
            val_loss, _ = validation.loss(logits_MK)
            ranks[at] = solutions[at].converged, score(logits_MK.argmax(1)), -val_loss

        for at in range(0, len(ridges), coarse):
            rank(at)
        while coarse > 1:
            coarse //= 2
            peak = _best(ranks)
            for at in (peak - coarse, peak + coarse):
                if 0 <= at < len(ridges) and at not in ranks:
                    rank(at)
    best, order = _best(ranks), sorted(ranks)
    points, last = list[PathPoint](), -1
    for at in order:
        iterations = sum(solution.iterations for solution in solutions[last + 1 : at + 1])
        _, val_score, negative_loss = ranks[at]
        points.append(PathPoint(ridges[at], solutions[at].train_loss, solutions[at].train_accuracy, val_score, -negative_loss, iterations))
        last = at
    return Path(tuple(points), order.index(best), solutions[best].parameters_KE.double(), objective.passes)


def _solve(problem: Problem, objective: Objective, ridges: Sequence[float], tolerance: float, max_iterations: int) -> list[_Solution]:
    """Returns the optimum at every value."""
    point, history, solutions = objective.start(), History(), list[_Solution]()
    stop = decrement_within(tolerance, point.loss)
    for ridge in ridges:
        descent = minimise(objective, problem.gram, ridge, point, history, stop, max_iterations=max_iterations)
        point = descent.point
        right = float((point.logits_NK.argmax(1) == objective.labels_N1[:, 0]).sum()) / len(objective)
        solutions.append(_Solution(point.parameters_KE.float(), point.loss, right, descent.iterations, descent.converged))
    return solutions


def _best(ranks: dict[int, tuple[bool, float, float]]) -> int:
    """Returns the place of the highest rank, the strongest among equals."""
    return max(sorted(ranks), key=lambda at: ranks[at])
