"""The Gram matrix of the centred features, decomposed: the scale of λ / n, and the metric of the descent.

Shape letters: M problems, N rows, D features, K classes, B rows of a block, R rank of the Gram matrix.
"""

import dataclasses
from collections.abc import Iterator

import torch

from .feature_rows import FeatureRows

_PANEL = 512  # columns of the Gram matrix that are summed together: of each panel only what lies on or below the diagonal block
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


def gram_of(rows: FeatureRows) -> Gram:
    """Returns the Gram matrix of centred rows, decomposed; one pass over them.

    N ≥ D: N D² products and an eigendecomposition of D×D. N < D: of N×N, with U = Xᵀ V diag(N s)^-½; the rows, fewer than their
    features, are then held in float64 meanwhile.
    """
    if len(rows) < rows.num_features:
        return _small_gram(torch.cat([block_BD.double() for _, block_BD in rows.blocks()]))
    gram_DD = torch.zeros(rows.num_features, rows.num_features, dtype=torch.float64, device=rows.device)
    squares = 0.0
    for _, block_BD in rows.blocks():
        squares += float(block_BD.square().sum(dtype=torch.float64))
        for columns in _panels(rows.num_features):  # the lower triangle, which is all that eigh reads
            gram_DD[columns.start :, columns] += block_BD[:, columns.start :].T @ block_BD[:, columns]
    eigenvalues_R, eigenvectors_DR = torch.linalg.eigh(gram_DD / len(rows))
    return Gram(eigenvalues_R.clamp_(min=0.0), eigenvectors_DR, squares / max(len(rows) * rows.num_features, 1))


def _panels(num_features: int) -> Iterator[slice]:
    for start in range(0, num_features, _PANEL):
        yield slice(start, min(start + _PANEL, num_features))


def _small_gram(wide_ND: torch.Tensor) -> Gram:
    eigenvalues_N, vectors_NN = torch.linalg.eigh(wide_ND @ wide_ND.T / len(wide_ND))
    kept = eigenvalues_N > _RANK_CUTOFF * eigenvalues_N.max().clamp(min=0.0)
    eigenvalues_R = eigenvalues_N[kept]
    eigenvectors_DR = wide_ND.T @ (vectors_NN[:, kept] / (len(wide_ND) * eigenvalues_R).sqrt())
    return Gram(eigenvalues_R, eigenvectors_DR, float(wide_ND.square().sum()) / max(wide_ND.numel(), 1))


@dataclasses.dataclass(frozen=True, eq=False)
class Preconditioner:
    """Approximate inverse Hessians of M problems' F in (W, b), as float64[M, K, D + 1] blocks.

    For class c the Hessian in W_c is taken as q_c G + μ I and in b_c as q_c, with q_c = mean over rows of p_c (1 − p_c).
    """

    gram: Gram
    curvature_MK: torch.Tensor
    ridge_M: torch.Tensor

    def take(self, kept: torch.Tensor) -> "Preconditioner":
        """Returns the inverses of the problems int64[M'] alone."""
        return Preconditioner(self.gram, self.curvature_MK[kept], self.ridge_M[kept])

    def __call__(self, gradient_MKE: torch.Tensor) -> torch.Tensor:
        """Returns the blocks multiplied by the inverses: U diag(1/(q_c s + μ)) Uᵀ g + (g − U Uᵀ g)/μ, and g_b / q_c."""
        weight_MKD, ridge_M11 = gradient_MKE[..., :-1], self.ridge_M[:, None, None]
        rotated_MKR = weight_MKD @ self.gram.eigenvectors_DR
        inverse_MKR = 1.0 / (self.curvature_MK[..., None] * self.gram.eigenvalues_R + ridge_M11)
        solved_MKE = torch.empty_like(gradient_MKE)
        if self.gram.eigenvectors_DR.shape[1] == weight_MKD.shape[2]:
            solved_MKE[..., :-1] = (rotated_MKR * inverse_MKR) @ self.gram.eigenvectors_DR.T
        else:
            within_MKD = (rotated_MKR * (inverse_MKR - 1.0 / ridge_M11)) @ self.gram.eigenvectors_DR.T
            solved_MKE[..., :-1] = weight_MKD / ridge_M11 + within_MKD
        solved_MKE[..., -1] = gradient_MKE[..., -1] / self.curvature_MK
        return solved_MKE
