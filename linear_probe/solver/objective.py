"""Multinomial logistic regression: F(W, b) = Σ w_i CE(W x_i + b, y_i) / Σ w_i + (μ / 2) ‖W‖², with b free and μ = λ / n; w_i = 1 as a rule.

Many problems over the same rows are evaluated together: they may differ in μ, in parameters and in the weights of the rows (the folds of a
cross-validation are 0/1 weights), and share every product with the feature matrix.

Shape letters: M problems, N rows, D features, E = D + 1 (the last column of a parameter block is the intercept), K classes, B rows of a
block. Parameters, gradients and all sums over rows are float64; products with the feature matrix and softmax run in `Objective.dtype`.
Logits lie with the rows innermost, [M, K, N]: products and sums over few classes are fast so, and a problem leaves a batch without a copy.
"""

import copy
import dataclasses
from collections.abc import Callable

import torch

from .feature_rows import FeatureRows, HeldRows

_LEAST_LOG = -60.0  # e⁻⁶⁰ is nothing beside 1 in float64 too; smaller ones become denormal numbers, 5 times slower to multiply
_LEAST_CURVATURE = 1e-6
_CACHED_NUMBERS = 2**17  # of logits handled together on a CPU, so that what is made of them stays in its cache
_RESIDENT_NUMBERS = 2**27  # the same on a GPU: few launches, and temporaries of half a gigabyte


@dataclasses.dataclass(frozen=True, eq=False)
class Point:
    """Parameters and all that is known there; nothing of it depends on μ, so a change of μ costs no pass over the features."""

    parameters_KE: torch.Tensor
    logits_KN: torch.Tensor
    loss: float
    """Mean cross-entropy in nats, without the penalty."""

    loss_gradient_KE: torch.Tensor
    curvature_K: torch.Tensor
    """The mean over rows of p_c (1 − p_c), bounded away from 0."""

    @property
    def logits_NK(self) -> torch.Tensor:  # noqa: N802 (named by its shape, as the fields are)
        """The logits as a view, a row for every row."""
        return self.logits_KN.T

    def value(self, ridge: float) -> float:
        """Returns F at μ = `ridge`."""
        return self.loss + 0.5 * ridge * float(self.parameters_KE[:, :-1].square().sum())

    def gradient(self, ridge: float) -> torch.Tensor:
        """Returns ∇F at μ = `ridge`, float64[K, E]."""
        gradient_KE = self.loss_gradient_KE.clone()
        gradient_KE[:, :-1] += ridge * self.parameters_KE[:, :-1]
        return gradient_KE


@dataclasses.dataclass(frozen=True, eq=False)
class Points:
    """The points of M problems."""

    parameters_MKE: torch.Tensor
    logits_MKN: torch.Tensor
    loss_M: torch.Tensor
    loss_gradient_MKE: torch.Tensor
    curvature_MK: torch.Tensor

    @staticmethod
    def of(point: Point, count: int = 1) -> "Points":
        """Returns the same point for `count` problems, as views."""
        return Points(
            point.parameters_KE.expand(count, -1, -1),
            point.logits_KN.expand(count, -1, -1),
            point.loss_gradient_KE.new_full((count,), point.loss),
            point.loss_gradient_KE.expand(count, -1, -1),
            point.curvature_K.expand(count, -1),
        )

    def __len__(self) -> int:
        return len(self.parameters_MKE)

    def member(self, number: int) -> Point:
        """Returns one problem's point, with logits of its own (of a batch a view would keep all of them in memory)."""
        logits_KN = self.logits_MKN[number]
        return Point(
            self.parameters_MKE[number],
            logits_KN.clone() if len(self) > 1 else logits_KN,
            float(self.loss_M[number]),
            self.loss_gradient_MKE[number],
            self.curvature_MK[number],
        )

    def take(self, kept: torch.Tensor) -> "Points":
        """Returns the points of the problems int64[M'] alone."""
        parts = (self.parameters_MKE[kept], self.logits_MKN[kept], self.loss_M[kept], self.loss_gradient_MKE[kept])
        return Points(*parts, self.curvature_MK[kept])

    def value(self, ridge_M: torch.Tensor) -> torch.Tensor:
        """Returns F, float64[M]."""
        return self.loss_M + 0.5 * ridge_M * self.parameters_MKE[..., :-1].square().sum((1, 2))

    def gradient(self, ridge_M: torch.Tensor) -> torch.Tensor:
        """Returns ∇F, float64[M, K, E]."""
        gradient_MKE = self.loss_gradient_MKE.clone()
        gradient_MKE[..., :-1].addcmul_(ridge_M[:, None, None], self.parameters_MKE[..., :-1])
        return gradient_MKE


@dataclasses.dataclass(frozen=True, eq=False)
class OnLine:
    """The mean cross-entropy φ(t) along a line of logits, and its first two derivatives; float64[M] each."""

    loss_M: torch.Tensor
    slope_M: torch.Tensor
    curvature_M: torch.Tensor


class Objective:
    """The data of one problem, or of M that share their rows: labels int64[N] in [0, K), each class present at least once.

    `passes` counts products with the feature matrix for one problem (2 N D K flops each), the currency in which solvers are compared.

    Args:
        features: float32 rows; a tensor [N, D] is taken as rows in memory.
        weights_MN: ≥ 0, one row per problem; None: every row counts once in every problem.
    """

    def __init__(
        self,
        features: FeatureRows | torch.Tensor,
        labels_N: torch.Tensor,
        num_classes: int,
        dtype: torch.dtype = torch.float32,
        weights_MN: torch.Tensor | None = None,
    ) -> None:
        self.rows = HeldRows(features) if isinstance(features, torch.Tensor) else features
        self.labels_N1, self.num_classes, self.dtype = labels_N[:, None], num_classes, dtype
        self.weights_MN = None if weights_MN is None else weights_MN.float()
        mass_M = labels_N.new_tensor([len(labels_N)]).double() if weights_MN is None else weights_MN.sum(1, dtype=torch.float64)
        self.mass_M = mass_M
        """Σ w_i of every problem, float64; one number where all are weighted alike."""

        self._passes = [0]

    @property
    def passes(self) -> int:
        """Passes over the features so far."""
        return self._passes[0]

    def __len__(self) -> int:
        return len(self.rows)

    def at_precision(self, dtype: torch.dtype) -> "Objective":
        """Returns the same problem with products and softmax in `dtype`; both count their passes together."""
        twin = copy.copy(self)
        twin.dtype = dtype
        return twin

    def take(self, kept: torch.Tensor) -> "Objective":
        """Returns the problems int64[M'] alone; passes are counted together."""
        if self.weights_MN is None:
            return self
        twin = copy.copy(self)
        twin.weights_MN, twin.mass_M = self.weights_MN[kept], self.mass_M[kept]
        return twin

    def starts(self) -> torch.Tensor:
        """Returns W = 0, b = log class frequency, float64[M, K, E] (M = 1 without weights): the optimum as μ → ∞."""
        weights_MN = torch.ones_like(self.labels_N1.T, dtype=torch.float64) if self.weights_MN is None else self.weights_MN.double()
        counts_MK = weights_MN.new_zeros(len(weights_MN), self.num_classes).index_add_(1, self.labels_N1[:, 0], weights_MN)
        parameters_MKE = counts_MK.new_zeros(*counts_MK.shape, self.rows.num_features + 1)
        parameters_MKE[..., -1] = (counts_MK / self.mass_M[:, None]).log()
        return parameters_MKE

    def start(self) -> Point:
        """Returns the point W = 0, b = log class frequency: the optimum as μ → ∞."""
        return self.at(self.starts()[0])

    def at(self, parameters_KE: torch.Tensor) -> Point:
        """Returns the point of these parameters; two passes."""
        return self.points(parameters_KE[None]).member(0)

    def points(self, parameters_MKE: torch.Tensor) -> Points:
        """Returns the points of these parameters; two passes each."""
        return self.points_at(parameters_MKE, self.forward(parameters_MKE))

    def points_at(self, parameters_MKE: torch.Tensor, logits_MKN: torch.Tensor) -> Points:
        """Returns the points of these parameters, whose logits are known; one pass each."""
        loss_M, residual_MKN = self.losses(logits_MKN)
        return Points(parameters_MKE, logits_MKN, loss_M, self.backward(residual_MKN), self.curvature(residual_MKN))

    def loss(self, logits_NK: torch.Tensor) -> tuple[float, torch.Tensor]:
        """Returns the mean cross-entropy and the residual softmax(logits) − one-hot(labels) [N, K] of one problem; no pass."""
        loss_M, residual_MKN = self.losses(logits_NK.T[None])
        return float(loss_M[0]), residual_MKN[0].T

    def losses(self, logits_MKN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the mean cross-entropies, float64[M], and the residuals w (softmax(logits) − one-hot(labels)) [M, K, N]; no pass."""
        loss_M = torch.zeros(len(logits_MKN), dtype=torch.float64, device=logits_MKN.device)
        residual_MKN = torch.empty(logits_MKN.shape, dtype=logits_MKN.dtype, device=logits_MKN.device)
        for place in self.places(logits_MKN):
            surprise_MB, residual_MKB = softmax_residual(logits_MKN[..., place], self.labels_N1[place, 0], residual_MKN[..., place])
            self.weigh(place, surprise_MB, residual_MKB)
            loss_M += surprise_MB.sum(1, dtype=torch.float64)
        return loss_M / self.mass_M, residual_MKN

    def line(self, logits_MKN: torch.Tensor, along_MKN: torch.Tensor, length_M: torch.Tensor, residual_MKN: torch.Tensor) -> OnLine:
        """Returns φ(t) = loss of (logits + t · along) with its derivatives at t = `length_M`, and writes the residuals there; no pass.

        φ' = mean_i w_i ⟨p_i − y_i, a_i⟩ and φ'' = mean_i w_i Var_{p_i}(a_i), with p_i the softmax at t and a_i a row's part of `along`.
        """
        sums_3M = torch.zeros(3, len(length_M), dtype=torch.float64, device=logits_MKN.device)
        length_M11 = length_M.to(logits_MKN.dtype)[:, None, None]
        for place in self.places(logits_MKN):
            along_MKB, labels_B = along_MKN[..., place], self.labels_N1[place, 0]
            logits_MKB = torch.addcmul(logits_MKN[..., place], along_MKB, length_M11)
            surprise_MB, residual_MKB = softmax_residual(logits_MKB, labels_B, residual_MKN[..., place])
            weighted_MKB = torch.mul(residual_MKB, along_MKB, out=logits_MKB)
            slope_MB = weighted_MKB.sum(1)
            own_MB = along_MKB.gather(1, _spread(labels_B, along_MKB))[:, 0]
            variance_MB = weighted_MKB.mul_(along_MKB).sum(1) - slope_MB * (slope_MB + 2.0 * own_MB)
            self.weigh(place, surprise_MB, slope_MB, variance_MB, residual_MKB)
            sums_3M += torch.stack([surprise_MB, slope_MB, variance_MB]).sum(2, dtype=torch.float64)
        return OnLine(*(sums_3M / self.mass_M))

    def forward(self, parameters_MKE: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Returns W x + b for every row, `dtype`[M, K, N], or as a view [N, K] for parameters [K, E]; one pass each.

        Args:
            out: where to write [M, K, N].
        """
        if parameters_MKE.ndim == 2:
            return self.forward(parameters_MKE[None])[0].T
        self._passes[0] += len(parameters_MKE)
        flat_CE = parameters_MKE.flatten(0, 1).to(self.dtype)
        logits_MKN = flat_CE.new_empty(*parameters_MKE.shape[:2], len(self)) if out is None else out
        weight_CD, bias_C1, logits_CN = flat_CE[:, :-1], flat_CE[:, -1:], logits_MKN.view(len(flat_CE), len(self))
        for place, block_BD in self.rows.blocks():
            torch.addmm(bias_C1, weight_CD, block_BD.to(self.dtype).T, out=logits_CN[:, place])
        return logits_MKN

    def backward(self, residual: torch.Tensor | Callable[[slice], torch.Tensor]) -> torch.Tensor:
        """Returns the gradients of the mean cross-entropy, float64[M, K, E]: residual [X 1] / Σ w, summed in float64 over blocks; one pass.

        Args:
            residual: [M, K, N], or a function that makes its columns [M, K, B] when they are needed.
        """
        total_CE = torch.zeros(0, dtype=torch.float64)
        for place, block_BD in self.rows.blocks():
            residual_CB = (residual[..., place] if isinstance(residual, torch.Tensor) else residual(place)).flatten(0, 1)
            if not len(total_CE):
                total_CE = block_BD.new_zeros(len(residual_CB), self.rows.num_features + 1, dtype=torch.float64)
            total_CE[:, :-1] += residual_CB @ block_BD.to(self.dtype)
            total_CE[:, -1] += residual_CB.sum(1, dtype=torch.float64)
        gradient_MKE = total_CE.view(-1, self.num_classes, total_CE.shape[1])
        self._passes[0] += len(gradient_MKE)
        return gradient_MKE / self.mass_M[:, None, None]

    def curvature(self, residual_MKN: torch.Tensor) -> torch.Tensor:
        """Returns float64[M, K]: the mean over rows of p_c (1 − p_c), bounded away from 0; no pass."""
        # |residual| is p or 1 − p, so |r| (1 − |r|) = p (1 − p) without undoing the one-hot
        total_MK = torch.zeros(residual_MKN.shape[:2], dtype=torch.float64, device=residual_MKN.device)
        for place in self.places(residual_MKN):
            size_MKB = residual_MKN[..., place].abs()
            square_MKB = size_MKB.square()
            if self.weights_MN is not None:
                square_MKB /= self.weights_MN[:, None, place].to(square_MKB.dtype).clamp(min=torch.finfo(torch.float32).tiny)
            total_MK += size_MKB.sub_(square_MKB).sum(2)
        return (total_MK / self.mass_M[:, None]).clamp_(min=_LEAST_CURVATURE)

    def places(self, logits_MKN: torch.Tensor) -> list[slice]:
        """Returns the runs of rows whose logits are handled together."""
        numbers = _CACHED_NUMBERS if logits_MKN.device.type == "cpu" else _RESIDENT_NUMBERS
        rows = max(1, numbers // max(logits_MKN.shape[0] * logits_MKN.shape[1], 1))
        return [slice(start, min(start + rows, len(self))) for start in range(0, len(self), rows)]

    def weigh(self, place: slice, *values: torch.Tensor) -> None:
        """Multiplies values [M, B] and [M, K, B] by the weights of their rows, in place."""
        if self.weights_MN is not None:
            for value in values:
                weights_MB = self.weights_MN[:, place].to(value.dtype)
                value.mul_(weights_MB if value.ndim == 2 else weights_MB[:, None])


def softmax_residual(
    logits_MKB: torch.Tensor, labels_B: torch.Tensor, out: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the cross-entropies [M, B] and softmax(logits) − one-hot(labels) [M, K, B] of a block of rows.

    1 − p_y is summed from the other classes and not subtracted: it keeps its digits where p_y is close to 1.

    Args:
        out: where to write the second.
    """
    own_M1B = _spread(labels_B, logits_MKB)
    below_MKB = torch.sub(logits_MKB, logits_MKB.amax(1, keepdim=True), out=out)
    own_log_M1B = below_MKB.gather(1, own_M1B)
    residual_MKB = below_MKB.clamp_(min=_LEAST_LOG).exp_()
    own_part_M1B = residual_MKB.gather(1, own_M1B)
    others_M1B = residual_MKB.scatter_(1, own_M1B, 0.0).sum(1, keepdim=True)
    total_M1B = own_part_M1B + others_M1B
    residual_MKB.scatter_(1, own_M1B, -others_M1B).div_(total_M1B)
    surprise_M1B = torch.where(others_M1B < own_part_M1B, torch.log1p(others_M1B / own_part_M1B), total_M1B.log() - own_log_M1B)
    return surprise_M1B[:, 0], residual_MKB


def _spread(labels_B: torch.Tensor, logits_MKB: torch.Tensor) -> torch.Tensor:
    return labels_B.expand(len(logits_MKB), 1, -1)
