"""Full-batch L-BFGS in a preconditioned metric, with an exact line search, for one problem or for many that share their rows.

Shape letters as in objective.py; P remembered pairs, C = K E. One iteration is two passes: the logits of the
direction, and the gradient at the new point.
"""

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence

import torch

from ..boundary import boundary
from .gram import Gram, Preconditioner
from .line_search import Penalty, search
from .objective import Objective, Point, Points

_REFRESH_EVERY = 30  # iterations after which logits that were added up step by step are computed afresh
_CURVATURE_EVERY = 5


class History:
    """The last `memory` steps s of M problems and the changes y of ∇F along them: the memory of L-BFGS.

    y = change of the loss gradient + μ s, which `at` adjusts where μ changes: the memory of one λ serves the next.
    """

    def __init__(self, memory: int = 10) -> None:
        self._memory = memory
        self._count = 0
        self._shape = torch.Size()
        self._ridge_M = torch.empty(0)
        self._steps_MPC = self._changes_MPC = self._products_MPP = torch.empty(0)

    def at(self, ridge_M: torch.Tensor) -> None:
        """Moves the changes to other values of μ."""
        if self._count and not torch.equal(self._ridge_M, ridge_M):
            shape = (*self._steps_MPC.shape[:2], *self._shape)
            steps_MPKD, changes_MPKD = self._steps_MPC.view(shape)[..., :-1], self._changes_MPC.view(shape)[..., :-1]
            changes_MPKD.addcmul_((ridge_M - self._ridge_M)[:, None, None, None], steps_MPKD)
            self._products_MPP = self._steps_MPC @ self._changes_MPC.mT
        self._ridge_M = ridge_M

    def push(self, step_MKE: torch.Tensor, change_MKE: torch.Tensor) -> None:
        """Adds a step and the change of ∇F along it, and forgets the oldest; `at` has been told μ."""
        step_MC, change_MC = step_MKE.flatten(1), change_MKE.flatten(1)
        if not self._count:
            self._shape = step_MKE.shape[1:]
            self._steps_MPC = step_MC.new_zeros(len(step_MC), self._memory, step_MC.shape[1])
            self._changes_MPC = torch.zeros_like(self._steps_MPC)
            self._products_MPP = step_MC.new_zeros(len(step_MC), self._memory, self._memory)
        slot = self._count % self._memory
        self._count += 1
        self._steps_MPC[:, slot], self._changes_MPC[:, slot] = step_MC, change_MC
        self._products_MPP[:, :, slot] = (self._steps_MPC @ change_MC[..., None])[..., 0]

    def take(self, kept: torch.Tensor) -> "History":
        """Returns the memory of the problems int64[M'] alone."""
        taken = copy.copy(self)
        if self._count:
            taken._ridge_M, taken._products_MPP = self._ridge_M[kept], self._products_MPP[kept]
            taken._steps_MPC, taken._changes_MPC = self._steps_MPC[kept], self._changes_MPC[kept]
        return taken

    def direction(self, gradient_MKE: torch.Tensor, precondition: Preconditioner) -> torch.Tensor:
        """Returns −H g by the two-loop recursion (Nocedal and Wright, algorithm 7.4) with H₀ = `precondition`.

        The loops are solved as triangular systems: with S, Y the pairs as rows, oldest first, U the upper triangle of S Yᵀ and Δ its
        diagonal, U α = S g, r = H₀ (g − Yᵀ α), Uᵀ γ = Δ α − Y r and H g = r + Sᵀ γ.
        """
        if not self._count:
            return -precondition(gradient_MKE)
        order_P = (torch.arange(self._memory, device=gradient_MKE.device) + self._count) % self._memory
        slots_P = order_P.argsort()
        upper_MPP, kept_MP = _solvable(self._products_MPP[:, order_P][:, :, order_P])
        alpha_MP = _solve(upper_MPP, (self._steps_MPC @ gradient_MKE.flatten(1)[..., None])[:, order_P, 0] * kept_MP, upper=True)
        moved_MC = (self._changes_MPC.mT @ alpha_MP[:, slots_P, None])[..., 0]
        result_MC = precondition(gradient_MKE - moved_MC.view_as(gradient_MKE)).flatten(1)
        seen_MP = upper_MPP.diagonal(dim1=1, dim2=2) * alpha_MP - (self._changes_MPC @ result_MC[..., None])[:, order_P, 0]
        gamma_MP = _solve(upper_MPP.mT, seen_MP * kept_MP, upper=False)
        result_MC = result_MC + (self._steps_MPC.mT @ gamma_MP[:, slots_P, None])[..., 0]
        return -result_MC.view_as(gradient_MKE)


def _solvable(products_MPP: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the upper triangles, with identity rows for pairs to leave out, and bool[M, P]: which pairs stay.

    Empty slots are left out, and pairs without positive curvature, where float32 rounding is all that moved.
    """
    kept_MP = products_MPP.diagonal(dim1=1, dim2=2) > 0.0
    upper_MPP = products_MPP.triu() * (kept_MP[:, :, None] & kept_MP[:, None, :])
    return upper_MPP + torch.diag_embed((~kept_MP).to(upper_MPP.dtype)), kept_MP


def _solve(triangle_MPP: torch.Tensor, right_MP: torch.Tensor, *, upper: bool) -> torch.Tensor:
    solved_MP1: torch.Tensor = torch.linalg.solve_triangular(triangle_MPP, right_MP[..., None], upper=upper)
    return solved_MP1[..., 0]


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a stopping rule sees of one problem before each iteration."""

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


def decrement_within(tolerance: float, start: float) -> StopRule:
    """Returns the rule decrement ≤ tolerance · min(F, F₀ − F) with F₀ = `start`, the value at W = 0; F₀ − F counts as at least 10⁻³ F.

    Where the penalty is strong F hardly falls, and a small share of F would be a large one of what there is to gain.
    """
    return lambda progress: progress.decrement <= tolerance * min(progress.value, max(start - progress.value, 1e-3 * progress.value))


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
    return minimise_all(objective, gram, [ridge], Points.of(point), history, stop, max_iterations=max_iterations)[0]


def minimise_all(
    objective: Objective,
    gram: Gram,
    ridges: Sequence[float],
    points: Points,
    history: History,
    stop: StopRule,
    *,
    max_iterations: int = 1000,
) -> list[Descent]:
    """Minimises M problems at μ = `ridges` together, each with its own memory, line search and end; the results in their order.

    Every product with the feature matrix serves all problems that still run; one that has ended leaves the batch. Memory besides the
    features: four [M, K, N] arrays in the objective's type, and 160 M K E bytes of L-BFGS memory.

    Args:
        objective: of one problem whose rows all M share, or with weights float[M, N].
        history: what the problems remember; updated as long as none has left.
    """
    batch = _Batch(objective, gram, torch.tensor(ridges, dtype=torch.float64, device=objective.rows.device), points, history)
    for iteration in range(max_iterations):
        boundary()
        batch.aim(iteration)
        batch.leave([state.decrement >= 0.0 and stop(state) for state in batch.progress()], iteration, converged=True)
        if batch.running:
            batch.advance(iteration)
        if not batch.running:
            break
    batch.leave([True] * len(batch.running), max_iterations, converged=False)
    return [batch.ended[member] for member in range(len(points))]


class _Batch:
    """The problems that still run, and the results of those that do not."""

    def __init__(self, objective: Objective, gram: Gram, ridge_M: torch.Tensor, points: Points, history: History) -> None:
        self.running = list(range(len(points)))
        self.ended: dict[int, Descent] = {}
        self._objective, self._ridge_M, self._points, self._history = objective, ridge_M, points, history
        self._precondition = Preconditioner(gram, points.curvature_MK, ridge_M)
        self._gradient_MKE = self._direction_MKE = points.gradient(ridge_M)
        self._slope_M = torch.full_like(ridge_M, -math.inf)
        self._spare_MKN: torch.Tensor | None = None
        self._residual_MKN: torch.Tensor | None = None
        self._owns_logits = False  # the first ones are the caller's, and may be a view
        history.at(ridge_M)

    def progress(self) -> list[Progress]:
        """Returns where every running problem stands."""
        bound_M = self._gradient_MKE[..., :-1].square().sum((1, 2)) / (2.0 * self._ridge_M)
        rows = torch.stack([self._points.value(self._ridge_M), -0.5 * self._slope_M, bound_M], dim=1).tolist()
        return [Progress(*row) for row in rows]

    def aim(self, iteration: int) -> None:
        """Finds the directions."""
        if iteration and iteration % _CURVATURE_EVERY == 0:
            self._precondition = _refreshed(self._precondition, self._points.curvature_MK)
        self._direction_MKE = self._history.direction(self._gradient_MKE, self._precondition)
        self._slope_M = (self._gradient_MKE * self._direction_MKE).sum((1, 2))

    def advance(self, iteration: int) -> None:
        """Goes to the minimisers of F along the directions; problems whose line search finds no descent leave."""
        along_MKN = self._objective.forward(self._direction_MKE, self._spare_MKN)
        residual_MKN = torch.empty_like(along_MKN) if self._residual_MKN is None else self._residual_MKN
        penalty = Penalty.of(self._ridge_M, self._points.parameters_MKE, self._direction_MKE)
        steps = search(self._objective, penalty, self._slope_M, self._points.logits_MKN, along_MKN, residual_MKN)
        failed = [not descended for descended in steps.descended_M.tolist()]
        self.leave(failed, iteration, converged=False)
        if not self.running:
            return
        if any(failed):
            kept = _others(failed, along_MKN.device)
            along_MKN, residual_MKN, steps = along_MKN[kept], residual_MKN[kept], steps.take(kept)
        reused = self._points.logits_MKN if self._owns_logits else None
        parameters_MKE = self._points.parameters_MKE + steps.length_M[:, None, None] * self._direction_MKE
        if iteration % _REFRESH_EVERY == _REFRESH_EVERY - 1:
            following = self._objective.points(parameters_MKE)
        else:
            logits_MKN = along_MKN.mul_(steps.length_M.to(along_MKN.dtype)[:, None, None]).add_(self._points.logits_MKN)
            gradient_MKE, curvature_MK = self._objective.backward(residual_MKN), self._objective.curvature(residual_MKN)
            following = Points(parameters_MKE, logits_MKN, steps.loss_M, gradient_MKE, curvature_MK)
        gradient_MKE = following.gradient(self._ridge_M)
        self._history.push(parameters_MKE - self._points.parameters_MKE, gradient_MKE - self._gradient_MKE)
        self._points, self._gradient_MKE = following, gradient_MKE
        self._spare_MKN, self._residual_MKN, self._owns_logits = reused, residual_MKN, True

    def leave(self, leaving: Sequence[bool], iterations: int, *, converged: bool) -> None:
        """Ends problems where they stand; the arrays of the others move together."""
        if not any(leaving):
            return
        decrements = (-0.5 * self._slope_M).tolist()
        for number, member in enumerate(self.running):
            if leaving[number]:
                self.ended[member] = Descent(self._points.member(number), iterations, decrements[number], converged)
        self.running = [member for number, member in enumerate(self.running) if not leaving[number]]
        if not self.running:
            return
        kept = _others(leaving, self._slope_M.device)
        self._objective, self._points, self._history = self._objective.take(kept), self._points.take(kept), self._history.take(kept)
        self._precondition = self._precondition.take(kept)
        self._ridge_M, self._slope_M = self._ridge_M[kept], self._slope_M[kept]
        self._gradient_MKE, self._direction_MKE = self._gradient_MKE[kept], self._direction_MKE[kept]
        self._spare_MKN = self._residual_MKN = None
        self._owns_logits = True


def _others(leaving: Sequence[bool], device: torch.device) -> torch.Tensor:
    return torch.tensor([number for number, leaves in enumerate(leaving) if not leaves], dtype=torch.int64, device=device)


def _refreshed(precondition: Preconditioner, curvature_MK: torch.Tensor) -> Preconditioner:
    """Returns a preconditioner with the new curvature of the problems where that has changed twofold in the mean."""
    ratio_M = curvature_MK.mean(1) / precondition.curvature_MK.mean(1)
    stale_M = (ratio_M <= 0.5) | (ratio_M >= 2.0)
    return dataclasses.replace(precondition, curvature_MK=torch.where(stale_M[:, None], curvature_MK, precondition.curvature_MK))
