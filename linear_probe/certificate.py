"""The certificate of a solution: a rigorous bound on how far its loss is above the optimum, from the duality gap in float64.

For any row-wise distributions P (N×K) whose column sums equal the class counts, Fenchel duality bounds the optimum from below:

    D(P) = mean_i H(p_i) − ‖(P − Y)ᵀ X‖² / (2 μ N²)  ≤  F* = min F        (H entropy, Y one-hot labels, X any shift of the features)

because min over W of mean⟨p_i − y_i, W x_i⟩ + (μ/2)‖W‖² is attained at W = −(P − Y)ᵀX / (μ N), and the free intercept asks for the
column sums. P is the softmax at the solution, its intercepts moved until the column sums match, the last rounding mixed away
(`_feasible`). Then F − D = ‖∇_W F‖² / 2μ: the bound that strong convexity gives. It needs no assumption on the solver, and where μ is
far below the curvature it overstates the gap, never the reverse. It is exact, up to the rounding of float64 sums (relative 1e-13), for
the rows as float32 centred them.
"""

import dataclasses
import math

import torch

from .objective import Objective

_MAX_NEWTON_STEPS = 30
_BALANCED = 1e-14


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What is known of a solution, all in float64."""

    value: float
    """F(W, b), nats per row."""

    lower_bound: float
    """D ≤ F*."""

    relative_gap: float
    """(F − D) / D ≥ F / F* − 1; infinite where D ≤ 0."""

    gradient_norm: float
    """‖∇_W F‖; the intercepts' gradient is 0 to rounding."""


def certify(objective: Objective, ridge: float, parameters_KE: torch.Tensor) -> tuple[torch.Tensor, Certificate]:
    """Returns the parameters with their intercepts made optimal, and their certificate; two passes in float64.

    Memory: three float64[N, K] arrays.
    """
    exact = objective.at_precision(torch.float64)
    logits_NK, shift_K = _balance_intercepts(exact, exact.forward(parameters_KE))
    parameters_KE = parameters_KE.clone()
    parameters_KE[:, -1] += shift_K
    loss, residual_NK = exact.loss(logits_NK)
    feasible_NK = _feasible(exact, residual_NK)
    entropy = float(torch.special.entr(feasible_NK).sum()) / len(exact)
    weight_KD, dual_KD = parameters_KE[:, :-1], exact.backward(exact.minus_labels(feasible_NK))[:, :-1]
    value = loss + 0.5 * ridge * float(weight_KD.square().sum())
    lower_bound = entropy - float(dual_KD.square().sum()) / (2.0 * ridge)
    relative_gap = max(value - lower_bound, 0.0) / lower_bound if lower_bound > 0.0 else math.inf
    return parameters_KE, Certificate(value, lower_bound, relative_gap, float((dual_KD + ridge * weight_KD).norm()))


def _balance_intercepts(objective: Objective, logits_NK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the logits with the intercepts that minimise the loss, and the shift float64[K] that led there (Newton's method)."""
    total_K = torch.zeros(objective.num_classes, dtype=torch.float64, device=logits_NK.device)
    gauge_KK = torch.full((objective.num_classes,) * 2, 1.0 / objective.num_classes, dtype=torch.float64, device=logits_NK.device)
    for _ in range(_MAX_NEWTON_STEPS):
        _, residual_NK = objective.loss(logits_NK)
        gradient_K = residual_NK.mean(0)
        if float(gradient_K.abs().sum()) <= _BALANCED:
            break
        probabilities_NK = objective.plus_labels(residual_NK)
        hessian_KK = torch.diag(probabilities_NK.mean(0)) - probabilities_NK.T @ probabilities_NK / len(objective)
        shift_K = -torch.linalg.lstsq(hessian_KK + gauge_KK, gradient_K[:, None]).solution[:, 0]
        shift_K = shift_K.clamp(-1.0, 1.0)  # far from the optimum a full step may overshoot
        logits_NK, total_K = logits_NK + shift_K, total_K + shift_K
    return logits_NK, total_K


def _feasible(objective: Objective, residual_NK: torch.Tensor) -> torch.Tensor:
    """Returns distributions float64[N, K] near softmax = residual + labels whose column sums are the class counts n_c.

    With excess δ_c = Σ_i p_ic − n_c, every row is mixed with one distribution q: (1 − ε) p_i + ε q, where
    q_c = (n_c − (1 − ε)(n_c + δ_c)) / (N ε) ≥ 0 needs ε ≥ max_c δ_c / (n_c + δ_c).
    """
    probabilities_NK = objective.plus_labels(residual_NK)
    excess_K = residual_NK.sum(0)
    mass_K = probabilities_NK.sum(0)
    share = float((excess_K / mass_K).max().clamp(min=0.0)) * (1.0 + 1e-6)
    if share == 0.0:
        return probabilities_NK
    mixture_K = ((mass_K - excess_K) - (1.0 - share) * mass_K) / (len(objective) * share)
    return probabilities_NK.mul_(1.0 - share).add_(share * mixture_K)
