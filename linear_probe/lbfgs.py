"""Full-batch L-BFGS in a preconditioned metric, with an exact line search that costs no pass over the features.

Shape letters as in objective.py. One iteration is two passes: the direction's logits, and the gradient at the new point.
"""

import dataclasses
import math
from collections.abc import Callable

import torch

from .gram import Gram, Preconditioner
from .objective import Objective, Point

_REFRESH_EVERY = 30  # iterations after which logits that were added up step by step are computed afresh
_CURVATURE_EVERY = 5
_SLOPE_SHARE = 0.1  # the line search ends when |φ'(t)| is at most this share of |φ'(0)|
_MAX_TRIALS = 20


class History:
    """The last `memory` steps s and changes of the *loss* gradient, from which y = change + μ s is made for any μ.

    Kept so, the memory of one λ serves the next without error.
    """

    def __init__(self, memory: int = 10) -> None:
        self._memory = memory
        self._steps: list[torch.Tensor] = []
        self._changes: list[torch.Tensor] = []

    def push(self, step_KE: torch.Tensor, change_KE: torch.Tensor) -> None:
        """Adds a step and the change of the loss gradient along it, and forgets the oldest."""
        self._steps, self._changes = [*self._steps, step_KE][-self._memory :], [*self._changes, change_KE][-self._memory :]

    def clear(self) -> None:
        """Forgets every step."""
        self._steps, self._changes = [], []

    def direction(self, gradient_KE: torch.Tensor, precondition: Preconditioner) -> torch.Tensor:
        """Returns −H g by the two-loop recursion (Nocedal and Wright, algorithm 7.4) with H₀ = `precondition`."""
        pairs = []
        for step_KE, change_KE in zip(self._steps, self._changes, strict=True):
            change_KE = change_KE.clone()
            change_KE[:, :-1] += precondition.ridge * step_KE[:, :-1]
            curvature = _dot(step_KE, change_KE)
            if float(curvature) > 0.0:  # not so only where float32 rounding is all that moved
                pairs.append((step_KE, change_KE, curvature))
        work_KE, shares = gradient_KE.clone(), []
        for step_KE, change_KE, curvature in reversed(pairs):
            share = _dot(step_KE, work_KE) / curvature
            work_KE -= share * change_KE
            shares.append(share)
        work_KE = precondition(work_KE)
        for (step_KE, change_KE, curvature), share in zip(pairs, reversed(shares), strict=True):
            work_KE += (share - _dot(change_KE, work_KE) / curvature) * step_KE
        return -work_KE


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a stopping rule sees before each iteration."""

    value: float
    """F."""

    decrement: float
    """½ gᵀHg with the quasi-Newton H: the decrease that the quadratic model promises."""

    bound: float
    """‖∇_W F‖² / 2μ ≥ F − F*, where ∇_b F = 0 (F is μ-strongly convex in W)."""


StopRule = Callable[[Progress], bool]


def decrement_below(tolerance: float, floor: float) -> StopRule:
    """Returns the rule decrement ≤ tolerance · max(F, floor); below the floor only the norm of W still grows."""
    return lambda progress: progress.decrement <= tolerance * max(progress.value, floor)


def bound_below(gap: float, floor: float) -> StopRule:
    """Returns the rule bound ≤ gap · max(F, floor)."""
    return lambda progress: progress.bound <= gap * max(progress.value, floor)


@dataclasses.dataclass(frozen=True, eq=False)
class Descent:
    """Where a minimisation ended: the point, the iterations it took, the last decrement, and whether the rule was met."""

    point: Point
    iterations: int
    decrement: float
    converged: bool


def minimise(
    objective: Objective, gram: Gram, ridge: float, point: Point, history: History, stop: StopRule, *, max_iterations: int = 1000
) -> Descent:
    """Minimises F at μ = `ridge` from `point` until `stop` says so, the iterations are spent, or rounding allows no descent.

    `history` may hold steps of an earlier call at another μ; it is updated.
    """
    precondition = Preconditioner(gram, objective.curvature(point), ridge)
    decrement = math.inf
    for iteration in range(max_iterations):
        if iteration and iteration % _CURVATURE_EVERY == 0:
            precondition = _refreshed(precondition, objective.curvature(point))
        gradient_KE = point.gradient(ridge)
        direction_KE = history.direction(gradient_KE, precondition)
        slope = float(_dot(gradient_KE, direction_KE))
        decrement = -0.5 * slope
        bound = float(gradient_KE[:, :-1].square().sum()) / (2.0 * ridge)
        if decrement >= 0.0 and stop(Progress(point.value(ridge), decrement, bound)):
            return Descent(point, iteration, decrement, converged=True)
        following = _advance(objective, ridge, point, direction_KE, fresh=iteration % _REFRESH_EVERY == _REFRESH_EVERY - 1)
        if following is None:
            return Descent(point, iteration, decrement, converged=False)
        history.push(following.parameters_KE - point.parameters_KE, following.loss_gradient_KE - point.loss_gradient_KE)
        point = following
    return Descent(point, max_iterations, decrement, converged=False)


def _refreshed(precondition: Preconditioner, curvature_K: torch.Tensor) -> Preconditioner:
    """Returns a preconditioner of the new curvature where that has changed twofold in the mean, else the same one."""
    ratio = float(curvature_K.mean() / precondition.curvature_K.mean())
    return precondition if 0.5 < ratio < 2.0 else dataclasses.replace(precondition, curvature_K=curvature_K)


def _advance(objective: Objective, ridge: float, point: Point, direction_KE: torch.Tensor, *, fresh: bool) -> Point | None:
    """Returns the minimiser of F along `direction_KE`, or None where the line search finds no descent."""
    along_NK = objective.forward(direction_KE)
    step = _line_search(objective, ridge, point, direction_KE, along_NK)
    if step is None:
        return None
    parameters_KE = point.parameters_KE + step.length * direction_KE
    if fresh:
        return objective.at(parameters_KE)
    return Point(parameters_KE, step.logits_NK, step.residual_NK, step.loss, objective.backward(step.residual_NK))


@dataclasses.dataclass(frozen=True, eq=False)
class _Step:
    length: float
    logits_NK: torch.Tensor
    residual_NK: torch.Tensor
    loss: float


def _line_search(
    objective: Objective, ridge: float, point: Point, direction_KE: torch.Tensor, along_NK: torch.Tensor
) -> _Step | None:
    """Returns the step t with |φ'(t)| ≤ 0.1 |φ'(0)| for φ(t) = F(parameters + t · direction), by Newton within a bracket.

    φ is convex, and with the logits of the direction at hand it needs no feature matrix:
        φ'(t) = mean_i ⟨p_i(t) − y_i, a_i⟩ + μ ⟨W + t V, V⟩        φ''(t) = mean_i Var_{p_i(t)}(a_i) + μ ‖V‖²
    with a the direction's logits and V its weights.
    """
    own, across = _dot(point.parameters_KE[:, :-1], direction_KE[:, :-1]), _dot(direction_KE[:, :-1], direction_KE[:, :-1])
    penalty_slope, penalty_curvature = ridge * float(own), ridge * float(across)
    initial = _mean_dot(point.residual_NK, along_NK) + penalty_slope
    if not initial < 0.0:
        return None
    low, high, length = 0.0, math.inf, 1.0
    for _ in range(_MAX_TRIALS):
        logits_NK = torch.add(point.logits_NK, along_NK, alpha=length)
        loss, residual_NK = objective.loss(logits_NK)
        slope = _mean_dot(residual_NK, along_NK) + penalty_slope + length * penalty_curvature
        if abs(slope) <= -_SLOPE_SHARE * initial:
            return _Step(length, logits_NK, residual_NK, loss)
        low, high = (length, high) if slope < 0.0 else (low, length)
        curvature = _mean_variance(residual_NK, along_NK, objective.labels_N1) + penalty_curvature
        newton = length - slope / curvature if curvature > 0.0 else math.inf
        limit = 10.0 * length
        length = min(newton, limit) if math.isinf(high) else newton
        if not low < length < high:
            length = 0.5 * (low + min(high, limit))
    return None


def _mean_variance(residual_NK: torch.Tensor, along_NK: torch.Tensor, labels_N1: torch.Tensor) -> float:
    """Returns the mean over rows of the variance of a = `along` under p = residual + one-hot(labels)."""
    own_N = along_NK.gather(1, labels_N1)[:, 0]
    weighted_NK = residual_NK * along_NK
    mean_N = weighted_NK.sum(1) + own_N
    square_N = (weighted_NK * along_NK).sum(1) + own_N.square()
    return float((square_N - mean_N.square()).sum(dtype=torch.float64)) / len(along_NK)


def _mean_dot(left_NK: torch.Tensor, right_NK: torch.Tensor) -> float:
    return float((left_NK * right_NK).sum(dtype=torch.float64)) / len(left_NK)


def _dot(left_KE: torch.Tensor, right_KE: torch.Tensor) -> torch.Tensor:
    return (left_KE * right_KE).sum()
