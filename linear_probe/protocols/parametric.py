"""A search over λ that solves few values of a fine grid: coarse ones first, then ever closer neighbours of the best.

Shape letters as in solver/problem.py; M validation rows.
"""

import math
from collections.abc import Sequence

import torch

from ..solver.lbfgs import History, decrement_below, minimise
from ..solver.objective import Objective
from ..solver.path import Path, PathPoint, Score
from ..solver.problem import Problem, full_float32


def parametric_sweep(
    problem: Problem,
    num_train: int,
    ridges: Sequence[float],
    score: Score,
    *,
    coarse: int,
    tolerance: float,
    floor_share: float,
    max_iterations: int = 1000,
) -> Path:
    """Solves every `coarse`-th of `ridges` (falling), then at each halving of the spacing both neighbours of the best value so far.

    Each solve starts from the parameters of the nearest value solved before, and stops at decrement ≤ tolerance · max(F, floor_share ·
    log J). The best has the highest score on the rows after the first `num_train`; among equals the lowest validation loss. Of 97 values
    at `coarse` = 16 these are 7 + 4 × 2 = 15 solves, fewer where the best lies at an end.

    Returns:
        The values that were solved, strongest first.

    Raises:
        ValueError: when `coarse` is no power of two.
    """
    if coarse < 1 or coarse & (coarse - 1):
        raise ValueError(f"coarse={coarse}: must be a power of two")
    objective, validation = problem.objective(num_train), problem.validation(num_train)
    stop = decrement_below(tolerance, floor_share * math.log(max(len(problem.present_J), 2)))
    points: dict[int, PathPoint] = {}
    parameters: dict[int, torch.Tensor] = {}

    def solve(at: int) -> None:
        nearest = min(parameters, key=lambda other: abs(other - at), default=None)
        point = objective.start() if nearest is None else objective.at(parameters[nearest])
        descent = minimise(objective, problem.gram, ridges[at], point, History(), stop, max_iterations=max_iterations)
        point = descent.point
        held, right = validation.at(point.parameters_KE), _accuracy(objective, point.logits_NK)
        points[at] = PathPoint(ridges[at], point.loss, right, score(held.logits_NK.argmax(1)), held.loss, descent.iterations)
        parameters[at] = point.parameters_KE

    def best() -> int:
        return max(sorted(points), key=lambda at: (points[at].val_score, -points[at].val_loss))

    with full_float32():
        for at in range(0, len(ridges), coarse):
            solve(at)
        while coarse > 1:
            coarse //= 2
            peak = best()
            for at in (peak - coarse, peak + coarse):
                if 0 <= at < len(ridges) and at not in points:
                    solve(at)
        found = best()
    order = sorted(points)
    return Path(tuple(points[at] for at in order), order.index(found), parameters[found], objective.passes)


def _accuracy(objective: Objective, logits_NK: torch.Tensor) -> float:
    return float((logits_NK.argmax(1) == objective.labels_N1[:, 0]).sum()) / len(objective)
