"""The exact line search of many problems at once, on logits: it costs no pass over the features.

Shape letters as in objective.py.
"""

import dataclasses

import torch

from .objective import Objective

_SLOPE_SHARE = 0.03  # the search ends when |φ'(t)| is at most this share of |φ'(0)|
_MAX_TRIALS = 20


@dataclasses.dataclass(frozen=True, eq=False)
class Steps:
    """What a line search found; the entries of problems that did not descend mean nothing."""

    length_M: torch.Tensor
    loss_M: torch.Tensor
    descended_M: torch.Tensor
    """Bool: problems with |φ'(t)| ≤ 0.03 |φ'(0)| at their t = length."""

    def take(self, kept: torch.Tensor) -> "Steps":
        """Returns the steps of the problems int64[M'] alone."""
        return Steps(self.length_M[kept], self.loss_M[kept], self.descended_M[kept])


@dataclasses.dataclass(frozen=True, eq=False)
class Penalty:
    """(μ/2) ‖W + t V‖² along the line: μ ⟨W, V⟩ + t μ ‖V‖² is its slope."""

    slope_M: torch.Tensor
    curvature_M: torch.Tensor

    @staticmethod
    def of(ridge_M: torch.Tensor, parameters_MKE: torch.Tensor, direction_MKE: torch.Tensor) -> "Penalty":
        """Returns the penalty along `direction_MKE`."""
        weight_MKD, along_MKD = parameters_MKE[..., :-1], direction_MKE[..., :-1]
        return Penalty(ridge_M * (weight_MKD * along_MKD).sum((1, 2)), ridge_M * along_MKD.square().sum((1, 2)))


def search(
    objective: Objective,
    penalty: Penalty,
    initial_M: torch.Tensor,
    logits_MKN: torch.Tensor,
    along_MKN: torch.Tensor,
    residual_MKN: torch.Tensor,
) -> Steps:
    """Returns the steps t with |φ'(t)| ≤ 0.03 |φ'(0)| for φ(t) = F(parameters + t · direction): by parabolas of φ', within a
    bracket, from t = 1.

    φ is convex, and its derivatives need the logits of the point and of the direction alone (`Objective.line`). A problem that is done
    keeps its t while others go on; `residual_MKN` receives the residuals at the steps.

    Args:
        initial_M: φ'(0); a problem where it is not negative does not descend.
        along_MKN: the direction's logits.
    """
    length_M = torch.ones_like(initial_M)
    low_M, high_M = torch.zeros_like(initial_M), torch.full_like(initial_M, torch.inf)
    last = (low_M, initial_M)
    for trial in range(_MAX_TRIALS):
        here = objective.line(logits_MKN, along_MKN, length_M, residual_MKN)
        slope_M = here.slope_M + penalty.slope_M + length_M * penalty.curvature_M
        done_M = slope_M.abs() <= -_SLOPE_SHARE * initial_M
        if trial == _MAX_TRIALS - 1 or bool((done_M | (initial_M >= 0.0)).all()):
            return Steps(length_M, here.loss_M, done_M & (initial_M < 0.0))
        falls_M = slope_M < 0.0
        low_M, high_M = torch.where(falls_M, length_M, low_M), torch.where(falls_M, high_M, length_M)
        proposed_M = _propose(length_M, slope_M, here.curvature_M + penalty.curvature_M, last, low_M, high_M)
        last, length_M = (length_M, slope_M), torch.where(done_M, length_M, proposed_M)
    raise AssertionError("the last trial returns")


def _propose(
    length_M: torch.Tensor,
    slope_M: torch.Tensor,
    curvature_M: torch.Tensor,
    last: tuple[torch.Tensor, torch.Tensor],
    low_M: torch.Tensor,
    high_M: torch.Tensor,
) -> torch.Tensor:
    """Returns the next length: where the parabola through φ', φ'' here and φ' at the last length (`last`) has its zero.

    Newton's step where it has none; at most tenfold while nothing bounds it; the middle of the bracket where that is left.
    """
    limit_M, back_M = 10.0 * length_M, last[0] - length_M
    bend_M = (last[1] - slope_M - curvature_M * back_M) / back_M.square()
    discriminant_M = curvature_M.square() - 4.0 * bend_M * slope_M
    divisor_M = torch.where(discriminant_M > 0.0, 0.5 * (curvature_M + discriminant_M.clamp(min=0.0).sqrt()), curvature_M)
    proposed_M = torch.where(curvature_M > 0.0, length_M - slope_M / divisor_M, torch.inf)
    proposed_M = torch.where(torch.isinf(high_M), torch.minimum(proposed_M, limit_M), proposed_M)
    middle_M = 0.5 * (low_M + torch.minimum(high_M, limit_M))
    return torch.where((low_M < proposed_M) & (proposed_M < high_M), proposed_M, middle_M)
