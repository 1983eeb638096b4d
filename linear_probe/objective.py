"""Multinomial logistic regression: F(W, b) = mean over rows of CE(W x + b, y) + (μ / 2) ‖W‖², with b free and μ = λ / n.

Shape letters: N rows, D features, E = D + 1 (the last column of a parameter block is the intercept), K classes, B rows of a block.
Parameters, gradients and all sums over rows are float64; products with the feature matrix and softmax run in `Objective.dtype`.
"""

import copy
import dataclasses

import torch

from .gram import row_blocks

_LEAST_LOG = -60.0  # e⁻⁶⁰ is nothing beside 1 in float64 too; smaller ones become denormal numbers, 5 times slower to multiply


@dataclasses.dataclass(frozen=True, eq=False)
class Point:
    """Parameters and all that is known there; nothing of it depends on μ, so a change of μ costs no pass over the features."""

    parameters_KE: torch.Tensor
    logits_NK: torch.Tensor
    residual_NK: torch.Tensor
    """softmax(logits) − one-hot(labels)."""

    loss: float
    """Mean cross-entropy in nats, without the penalty."""

    loss_gradient_KE: torch.Tensor

    def value(self, ridge: float) -> float:
        """Returns F at μ = `ridge`."""
        return self.loss + 0.5 * ridge * float(self.parameters_KE[:, :-1].square().sum())

    def gradient(self, ridge: float) -> torch.Tensor:
        """Returns ∇F at μ = `ridge`, float64[K, E]."""
        gradient_KE = self.loss_gradient_KE.clone()
        gradient_KE[:, :-1] += ridge * self.parameters_KE[:, :-1]
        return gradient_KE


class Objective:
    """The data of one problem: features float32[N, D], labels int64[N] in [0, K), each class present at least once.

    `passes` counts products with the feature matrix (2 N D K flops each), the currency in which solvers are compared.
    """

    def __init__(self, features_ND: torch.Tensor, labels_N: torch.Tensor, num_classes: int, dtype: torch.dtype = torch.float32) -> None:
        self.features_ND, self.labels_N1, self.num_classes, self.dtype = features_ND, labels_N[:, None], num_classes, dtype
        self._passes = [0]

    @property
    def passes(self) -> int:
        """Passes over the features so far."""
        return self._passes[0]

    def __len__(self) -> int:
        return len(self.features_ND)

    def at_precision(self, dtype: torch.dtype) -> "Objective":
        """Returns the same problem with products and softmax in `dtype`; both count their passes together."""
        twin = copy.copy(self)
        twin.dtype = dtype
        return twin

    def start(self) -> Point:
        """Returns the point W = 0, b = log class frequency: the optimum as μ → ∞."""
        counts_K = torch.bincount(self.labels_N1[:, 0], minlength=self.num_classes)
        shape = (self.num_classes, self.features_ND.shape[1] + 1)
        parameters_KE = torch.zeros(shape, dtype=torch.float64, device=self.features_ND.device)
        parameters_KE[:, -1] = (counts_K / len(self)).log()
        return self.at(parameters_KE)

    def at(self, parameters_KE: torch.Tensor) -> Point:
        """Returns the point of these parameters; two passes."""
        return self.point(parameters_KE, self.forward(parameters_KE))

    def point(self, parameters_KE: torch.Tensor, logits_NK: torch.Tensor) -> Point:
        """Returns the point of these parameters, whose logits are known; one pass."""
        loss, residual_NK = self.loss(logits_NK)
        return Point(parameters_KE, logits_NK, residual_NK, loss, self.backward(residual_NK))

    def loss(self, logits_NK: torch.Tensor) -> tuple[float, torch.Tensor]:
        """Returns the mean cross-entropy and the residual softmax(logits) − one-hot(labels); no pass."""
        # 1 − p_y is summed from the other classes and not subtracted: it keeps its digits where p_y is close to 1
        partition_N1 = torch.logsumexp(logits_NK, dim=1, keepdim=True)
        surprise_N1 = partition_N1 - logits_NK.gather(1, self.labels_N1)
        residual_NK = (logits_NK - partition_N1).clamp_(min=_LEAST_LOG).exp_().scatter_(1, self.labels_N1, 0.0)
        missed_N1 = residual_NK.sum(1, keepdim=True)
        residual_NK.scatter_(1, self.labels_N1, -missed_N1)
        loss_N1 = torch.where(missed_N1 < 0.5, -torch.log1p(-missed_N1), surprise_N1)
        return float(loss_N1.sum(dtype=torch.float64)) / len(self), residual_NK

    def minus_labels(self, values_NK: torch.Tensor) -> torch.Tensor:
        """Subtracts the one-hot labels in place."""
        return values_NK.scatter_add_(1, self.labels_N1, values_NK.new_full((1, 1), -1.0).expand(len(self), 1))

    def plus_labels(self, values_NK: torch.Tensor) -> torch.Tensor:
        """Returns a copy with the one-hot labels added."""
        return values_NK.scatter_add(1, self.labels_N1, values_NK.new_ones(1, 1).expand(len(self), 1))

    def forward(self, parameters_KE: torch.Tensor) -> torch.Tensor:
        """Returns W x + b for every row, `dtype`[N, K]; one pass."""
        self._passes[0] += 1
        weight_KD, bias_K = parameters_KE[:, :-1].to(self.dtype), parameters_KE[:, -1].to(self.dtype)
        if self.dtype == self.features_ND.dtype:
            return torch.nn.functional.linear(self.features_ND, weight_KD, bias_K)
        blocks = [torch.nn.functional.linear(block_BD.to(self.dtype), weight_KD, bias_K) for block_BD in row_blocks(self.features_ND)]
        return torch.cat(blocks)

    def backward(self, residual_NK: torch.Tensor) -> torch.Tensor:
        """Returns the gradient of the mean cross-entropy, float64[K, E]: residualᵀ [X 1] / N, summed in float64 over blocks; one pass."""
        self._passes[0] += 1
        num_features = self.features_ND.shape[1]
        gradient_KE = torch.zeros(self.num_classes, num_features + 1, dtype=torch.float64, device=self.features_ND.device)
        for block_BD, residual_BK in zip(row_blocks(self.features_ND), row_blocks(residual_NK), strict=True):
            gradient_KE[:, :-1] += residual_BK.T @ block_BD.to(self.dtype)  # K×B times B×D: 10 times faster than its transpose at K = 10
            gradient_KE[:, -1] += residual_BK.sum(0, dtype=torch.float64)
        return gradient_KE / len(self)

    def curvature(self, point: Point) -> torch.Tensor:
        """Returns float64[K]: the mean over rows of p_c (1 − p_c), bounded away from 0; no pass."""
        # |residual| is p or 1 − p, so |r| (1 − |r|) = p (1 − p) without undoing the one-hot
        size_NK = point.residual_NK.abs()
        return (size_NK - size_NK.square()).mean(0, dtype=torch.float64).clamp_(min=1e-6)
