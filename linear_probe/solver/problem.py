"""The solver of the linear probe: multinomial logistic regression to a stated accuracy.

    F(W, b) = (1/n) Σ CE(W x_i + b, y_i) + (λ / 2n) ‖W‖²,  b free;  λ is 1/C of scikit-learn, and μ = λ/n is called `ridge` here

Features are centred, search directions preconditioned by the eigendecomposition of the Gram matrix, and L-BFGS runs with an exact line
search on cached logits: float32 products first, then float64 ones until the duality gap certifies the solution (certificate.py).
Method: L-BFGS of Nocedal and Wright, chapter 7.2; scikit-learn minimises the same F (LogisticRegression, C = 1/λ).

Shape letters: N rows, D features, K classes, J ≤ K classes that occur in the rows, E = D + 1.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from .certificate import Certificate, certify
from .feature_rows import FeatureRows, HeldRows, Matrix, open_rows
from .gram import Gram, gram_of
from .lbfgs import Descent, History, bound_below, decrement_below, minimise, minimise_all
from .objective import Objective, Points

__all__ = ["Classifier", "Fit", "Matrix", "Problem", "fit", "full_float32", "open_problem"]

_FLOAT32_EXTRA = 60  # iterations that float32 gets to reach the certificate's bound before float64 takes over


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
    """A linear classifier: logits = W (x − mean) + b; a class absent from its training rows has b = −∞, its exact optimum."""

    weight_KD: torch.Tensor
    bias_K: torch.Tensor
    mean_D: torch.Tensor

    def logits(self, features_ND: torch.Tensor) -> torch.Tensor:
        """Returns float32[N, K] for float32[N, D] features that are not centred."""
        return torch.nn.functional.linear(features_ND - self.mean_D, self.weight_KD, self.bias_K)


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
    """A solution and what it cost."""

    classifier: Classifier
    certificate: Certificate
    ridge: float
    iterations: int
    passes: int
    converged: bool
    """Whether the relative gap that was asked for is certified."""


class Problem:
    """The rows of one probe, prepared once for every λ, every leading part and every fold of them.

    Args:
        features: float32[N, D], finite; a tensor is **centred in place**, so that the matrix stands in memory once.
        labels_N: int64[N] in [0, K), on the device of the features.
        num_classes: K.

    Raises:
        ValueError: for features of another type or not finite, labels out of range, or no rows.
    """

    def __init__(self, features: FeatureRows | torch.Tensor, labels_N: torch.Tensor, num_classes: int) -> None:
        if isinstance(features, torch.Tensor):
            _check_matrix(features, labels_N)
            features = HeldRows(features)
        _check(labels_N, num_classes)
        self.num_classes = num_classes
        self.mean_D = features.mean()  # in float32: a shift moves nothing but the unpenalised intercept (b ↦ b + W m), exactly
        if not bool(torch.isfinite(self.mean_D).all()):
            raise ValueError("features are not all finite: NaN or infinity among them")
        self.rows = features.shifted(self.mean_D)
        self.present_J, self._labels_N = torch.unique(labels_N, return_inverse=True)
        self.gram: Gram = gram_of(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def objective(self, num_rows: int | None = None, weights_MN: torch.Tensor | None = None) -> Objective:
        """Returns the objective over the first `num_rows` rows (all of them: None), among which every present class must occur.

        Args:
            weights_MN: float[M, N] ≥ 0, a row for each of M problems over these rows (0/1: the folds of a cross-validation).

        Raises:
            ValueError: for a problem in which a present class has no weight, so that its intercept has no optimum.
        """
        labels_N = self._labels_N[:num_rows]
        assert len(torch.unique(labels_N)) == len(self.present_J), "a class would lie outside the leading rows only"
        objective = Objective(self.rows.part(0, num_rows), labels_N, len(self.present_J), weights_MN=weights_MN)
        if weights_MN is not None and bool(torch.isinf(objective.starts()).any()):
            raise ValueError("weights leave a class without rows in one of the problems: spread its rows over more folds, or leave it out")
        return objective

    def validation(self, num_train: int) -> Objective:
        """Returns the rows after the first `num_train` as an objective to evaluate, never to minimise (a class may be missing)."""
        return Objective(self.rows.part(num_train, None), self._labels_N[num_train:], len(self.present_J))

    def classifier(self, parameters_JE: torch.Tensor) -> Classifier:
        """Returns the classifier over all K classes that these parameters of the present ones make, in float32."""
        shape = (self.num_classes, self.rows.num_features)
        weight_KD = torch.zeros(shape, dtype=torch.float32, device=parameters_JE.device)
        bias_K = torch.full(shape[:1], -math.inf, dtype=torch.float32, device=parameters_JE.device)
        weight_KD[self.present_J] = parameters_JE[:, :-1].float()
        bias_K[self.present_J] = parameters_JE[:, -1].float()
        return Classifier(weight_KD, bias_K, self.mean_D)

    def fit(
        self,
        ridge: float,
        *,
        start: torch.Tensor | None = None,
        tolerance: float = 1e-7,
        gap: float = 1e-6,
        max_iterations: int = 1000,
    ) -> Fit:
        """Returns the optimum over all rows at μ = `ridge`, its relative gap certified to be at most `gap`.

        Float32 until decrement ≤ tolerance · F, then until ‖∇_W F‖² / 2μ ≤ gap / 2 · F (float64 where float32 has no digits left for that);
        the duality gap has the last word. `start` are parameters float64[J, E] to begin from.
        """
        objective = self.objective()
        starts_MJE = objective.starts() if start is None else start[None]
        return self._fit(objective, [ridge], starts_MJE, tolerance, gap, max_iterations)[0]

    def fit_all(
        self,
        ridges: Sequence[float],
        weights_MN: torch.Tensor | None = None,
        *,
        tolerance: float = 1e-7,
        gap: float = 1e-6,
        max_iterations: int = 1000,
    ) -> list[Fit]:
        """Returns the optima of M problems at μ = `ridges`, as `fit`, with one batch for the descent in float32.

        Args:
            ridges: M values; with equal ones and the weights of M folds, the models of a cross-validation.
            weights_MN: as `objective`; μ = λ / Σ w there.

        Raises:
            ValueError: as `objective`, for a ridge that is not above 0, or numbers of ridges and weights that differ.
        """
        if weights_MN is not None and weights_MN.shape != (len(ridges), len(self)):
            raise ValueError(f"weights of shape {tuple(weights_MN.shape)}: must be ({len(ridges)} problems, {len(self)} rows)")
        objective = self.objective(weights_MN=weights_MN)
        return self._fit(objective, ridges, objective.starts(), tolerance, gap, max_iterations)

    def _fit(
        self, objective: Objective, ridges: Sequence[float], starts_MJE: torch.Tensor, tolerance: float, gap: float, max_iterations: int
    ) -> list[Fit]:
        """Returns the certified solutions from `starts_MJE`, of which all problems share the only one or have their own."""
        for ridge in ridges:
            if not ridge > 0.0:
                raise ValueError(f"ridge={ridge}: must be above 0 (without a penalty separable rows have no optimum)")
        with full_float32():
            points, history, near = objective.points(starts_MJE), History(), decrement_below(tolerance, 0.0)
            if len(points) < len(ridges):
                points = Points.of(points.member(0), len(ridges))
            descents = minimise_all(objective, self.gram, ridges, points, history, near, max_iterations=max_iterations)
            del points
            fits = []
            for member, ridge in enumerate(ridges):
                alone = objective.take(torch.tensor([member], device=self.mean_D.device))
                kept = history if len(ridges) == 1 else History()  # a batch has no memory left that belongs to one problem
                fits.append(self._certified(alone, ridge, descents.pop(0), kept, gap, max_iterations))
        return fits

    def _certified(self, objective: Objective, ridge: float, descent: Descent, history: History, gap: float, max_iterations: int) -> Fit:
        """Returns the solution of one problem, brought from where a descent ended to a certified gap."""
        exact, target = objective.at_precision(torch.float64), bound_below(0.5 * gap, 0.0)
        iterations = descent.iterations
        left = min(_FLOAT32_EXTRA, max_iterations - iterations)
        descent = minimise(objective, self.gram, ridge, descent.point, history, target, max_iterations=left)
        iterations += descent.iterations
        parameters_JE = descent.point.parameters_KE
        del descent
        parameters_JE, certificate = certify(objective, ridge, parameters_JE)
        if certificate.relative_gap > gap:
            left = max_iterations - iterations
            descent = minimise(exact, self.gram, ridge, exact.at(parameters_JE), history, target, max_iterations=left)
            iterations += descent.iterations
            parameters_JE, certificate = certify(objective, ridge, descent.point.parameters_KE)
        converged = certificate.relative_gap <= gap
        return Fit(self.classifier(parameters_JE), certificate, ridge, iterations, objective.passes, converged)


def open_problem(
    features: Matrix,
    labels: npt.NDArray[np.int64],
    order: npt.NDArray[np.int64],
    num_classes: int,
    *,
    device: torch.device,
    memory: int | None = None,
) -> Problem:
    """Returns the problem of the rows `order` of a feature matrix (a memory map as a rule), in that order.

    Args:
        memory: bytes that float32 rows may take on the device; where they would take more, they are read block by block at every pass
            (twice an iteration), with the same results. None: half of what is free.

    Raises:
        ValueError: as `Problem`.
    """
    return Problem(open_rows(features, order, device, memory), torch.from_numpy(labels[order]).to(device), num_classes)


def fit(features_ND: torch.Tensor, labels_N: torch.Tensor, num_classes: int, penalty: float, *, gap: float = 1e-6) -> Fit:
    """Returns the optimum at λ = `penalty` (= 1/C of scikit-learn), as `Problem.fit`; the features are left as they are."""
    problem = Problem(features_ND.clone(), labels_N, num_classes)
    return problem.fit(penalty / len(labels_N), gap=gap)


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Keeps float32 products plain inside the block, whatever the process allows elsewhere (TF32 has 10 bits)."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _check_matrix(features_ND: torch.Tensor, labels_N: torch.Tensor) -> None:
    if features_ND.dtype != torch.float32 or features_ND.ndim != 2 or len(features_ND) != len(labels_N):
        shapes = f"{features_ND.dtype}{list(features_ND.shape)} features with {labels_N.dtype}{list(labels_N.shape)} labels"
        raise ValueError(f"{shapes}: must be float32[N, D] and int64[N]")


def _check(labels_N: torch.Tensor, num_classes: int) -> None:
    if not len(labels_N):
        raise ValueError("no labelled rows: there is nothing to fit")
    low, high = int(labels_N.min()), int(labels_N.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"labels from {low} to {high}: must be in [0, {num_classes})")
