"""The feature matrix as the solver wants it: centred, with the eigendecomposition of its Gram matrix.

Shape letters: N rows, D features, R rank of the Gram matrix.
"""

import dataclasses
import math
from collections.abc import Iterator

import torch

_BLOCK_ROWS = 8192

_RANK_CUTOFF = 1e-11  # eigenvalues of the N×N Gram below this share of the largest are rounding, not directions


@dataclasses.dataclass(frozen=True, eq=False)
class Gram:
    """G = XᵀX / N of centred features X: G ≈ U diag(s) Uᵀ with R ≤ min(N, D) kept directions.

    Exact up to the rounding of float32 products summed in float64; what it is used for (a preconditioner and a scale) needs no more.
    """

    eigenvalues_R: torch.Tensor
    """float64[R], ≥ 0, ascending."""

    eigenvectors_DR: torch.Tensor
    """float64[D, R], orthonormal columns."""

    mean_eigenvalue: float
    """trace(G) / D, computed in float64 whatever R is; the scale that λ / n is measured in."""


def row_blocks(matrix: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yields views of at most 8,192 rows: what is summed in float64, or converted, at a time."""
    for start in range(0, len(matrix), _BLOCK_ROWS):
        yield matrix[start : start + _BLOCK_ROWS]


def centre_in_place(features_ND: torch.Tensor) -> torch.Tensor:
    """Subtracts the column means from float32[N, D] and returns those means, float32[D].

    Centring changes the problem by nothing but the unpenalised intercept (b ↦ b + W m), exactly, for any shift m; so the means may be
    rounded to float32.
    """
    total_D = torch.zeros(features_ND.shape[1], dtype=torch.float64, device=features_ND.device)
    for block_BD in row_blocks(features_ND):
        total_D += block_BD.sum(0, dtype=torch.float64)
    mean_D = (total_D / max(len(features_ND), 1)).to(features_ND.dtype)
    features_ND -= mean_D
    return mean_D


def gram_of(features_ND: torch.Tensor) -> Gram:
    """Returns the Gram matrix of centred float32[N, D] features, decomposed.

    N ≥ D: one pass of N D² products and an eigendecomposition of D×D. N < D: of N×N, with U = Xᵀ V diag(N s)^-½.
    """
    num_rows, num_features = features_ND.shape
    squares = math.fsum(float(block_BD.square().sum(dtype=torch.float64)) for block_BD in row_blocks(features_ND))
    mean_eigenvalue = squares / max(num_rows * num_features, 1)
    if num_rows < num_features:
        return _small_gram(features_ND, mean_eigenvalue)
    gram_DD = torch.zeros(num_features, num_features, dtype=torch.float64, device=features_ND.device)
    for block_BD in row_blocks(features_ND):
        gram_DD += block_BD.T @ block_BD
    eigenvalues_R, eigenvectors_DR = torch.linalg.eigh(gram_DD / num_rows)
    return Gram(eigenvalues_R.clamp_(min=0.0), eigenvectors_DR, mean_eigenvalue)


def _small_gram(features_ND: torch.Tensor, mean_eigenvalue: float) -> Gram:
    wide_ND = features_ND.double()
    eigenvalues_N, vectors_NN = torch.linalg.eigh(wide_ND @ wide_ND.T / len(wide_ND))
    kept = eigenvalues_N > _RANK_CUTOFF * eigenvalues_N.max().clamp(min=0.0)
    eigenvalues_R = eigenvalues_N[kept]
    eigenvectors_DR = wide_ND.T @ (vectors_NN[:, kept] / (len(wide_ND) * eigenvalues_R).sqrt())
    return Gram(eigenvalues_R, eigenvectors_DR, mean_eigenvalue)


@dataclasses.dataclass(frozen=True, eq=False)
class Preconditioner:
    """An approximate inverse Hessian of F in (W, b), one float64[K, D + 1] block.

    For class c the Hessian in W_c is taken as q_c G + μ I and in b_c as q_c, with q_c = mean over rows of p_c (1 − p_c).
    """

    gram: Gram
    curvature_K: torch.Tensor
    ridge: float

    def __call__(self, gradient_KE: torch.Tensor) -> torch.Tensor:
        """Returns the block multiplied by the inverse: U diag(1/(q_c s + μ)) Uᵀ g + (g − U Uᵀ g)/μ, and g_b / q_c."""
        weight_KD, bias_K1 = gradient_KE[:, :-1], gradient_KE[:, -1:]
        rotated_KR = weight_KD @ self.gram.eigenvectors_DR
        inverse_KR = 1.0 / (self.curvature_K[:, None] * self.gram.eigenvalues_R + self.ridge)
        if self.gram.eigenvectors_DR.shape[1] == weight_KD.shape[1]:
            solved_KD = (rotated_KR * inverse_KR) @ self.gram.eigenvectors_DR.T
        else:
            within_KD = (rotated_KR * (inverse_KR - 1.0 / self.ridge)) @ self.gram.eigenvectors_DR.T
            solved_KD = weight_KD / self.ridge + within_KD
        return torch.cat([solved_KD, bias_K1 / self.curvature_K[:, None]], dim=1)
