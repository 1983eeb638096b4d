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
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from .certificate import Certificate, certify
from .gram import Gram, centre_in_place, gram_of
from .lbfgs import History, bound_below, decrement_below, minimise
from .objective import Objective

Matrix = npt.NDArray[np.float32] | npt.NDArray[np.float16]

_BLOCK_ROWS = 16384
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
    """The rows of one probe, prepared once for every λ and every leading part of them.

    Args:
        features_ND: float32[N, D], finite; **centred in place**, so that the matrix stands in memory once.
        labels_N: int64[N] in [0, K).
        num_classes: K.

    Raises:
        ValueError: for features of another type or not finite, labels out of range, or no rows.
    """

    def __init__(self, features_ND: torch.Tensor, labels_N: torch.Tensor, num_classes: int) -> None:
        _check(features_ND, labels_N, num_classes)
        self.num_classes = num_classes
        self.mean_D = centre_in_place(features_ND)
        self.features_ND = features_ND
        self.present_J, self._labels_N = torch.unique(labels_N, return_inverse=True)
        self.gram: Gram = gram_of(features_ND)

    def objective(self, num_rows: int | None = None) -> Objective:
        """Returns the objective over the first `num_rows` rows (all of them: None), among which every present class must occur."""
        labels_N = self._labels_N[:num_rows]
        assert len(torch.unique(labels_N)) == len(self.present_J), "a class would lie outside the leading rows only"
        return Objective(self.features_ND[:num_rows], labels_N, len(self.present_J))

    def validation(self, num_train: int) -> Objective:
        """Returns the rows after the first `num_train` as an objective to evaluate, never to minimise (a class may be missing)."""
        return Objective(self.features_ND[num_train:], self._labels_N[num_train:], len(self.present_J))

    def classifier(self, parameters_JE: torch.Tensor) -> Classifier:
        """Returns the classifier over all K classes that these parameters of the present ones make, in float32."""
        shape = (self.num_classes, self.features_ND.shape[1])
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
        if not ridge > 0.0:
            raise ValueError(f"ridge={ridge}: must be above 0 (without a penalty separable rows have no optimum)")
        objective, history = self.objective(), History()
        exact, target = objective.at_precision(torch.float64), bound_below(0.5 * gap, 0.0)
        with full_float32():
            point = objective.start() if start is None else objective.at(start)
            descent = minimise(objective, self.gram, ridge, point, history, decrement_below(tolerance, 0.0), max_iterations=max_iterations)
            iterations = descent.iterations
            left = min(_FLOAT32_EXTRA, max_iterations - iterations)
            descent = minimise(objective, self.gram, ridge, descent.point, history, target, max_iterations=left)
            iterations += descent.iterations
            parameters_JE, certificate = certify(objective, ridge, descent.point.parameters_KE)
            if certificate.relative_gap > gap:
                left = max_iterations - iterations
                descent = minimise(exact, self.gram, ridge, exact.at(parameters_JE), history, target, max_iterations=left)
                iterations += descent.iterations
                parameters_JE, certificate = certify(objective, ridge, descent.point.parameters_KE)
        converged = certificate.relative_gap <= gap
        return Fit(self.classifier(parameters_JE), certificate, ridge, iterations, objective.passes, converged)


def open_problem(
    features: Matrix, labels: npt.NDArray[np.int64], order: npt.NDArray[np.int64], num_classes: int, *, device: torch.device
) -> Problem:
    """Returns the problem of the rows `order` of a feature matrix (a memory map as a rule), in that order.

    Raises:
        ValueError: as `Problem`.
    """
    rows_ND = torch.empty(len(order), features.shape[1], device=device)
    for start in range(0, len(order), _BLOCK_ROWS):
        block = np.asarray(features[order[start : start + _BLOCK_ROWS]], np.float32)
        rows_ND[start : start + _BLOCK_ROWS] = torch.from_numpy(block).to(device)
    return Problem(rows_ND, torch.from_numpy(labels[order]).to(device), num_classes)


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


def _check(features_ND: torch.Tensor, labels_N: torch.Tensor, num_classes: int) -> None:
    if features_ND.dtype != torch.float32 or features_ND.ndim != 2 or len(features_ND) != len(labels_N):
        shapes = f"{features_ND.dtype}{list(features_ND.shape)} features with {labels_N.dtype}{list(labels_N.shape)} labels"
        raise ValueError(f"{shapes}: must be float32[N, D] and int64[N]")
    if not len(labels_N):
        raise ValueError("no labelled rows: there is nothing to fit")
    low, high = int(labels_N.min()), int(labels_N.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"labels from {low} to {high}: must be in [0, {num_classes})")
    if not bool(torch.isfinite(features_ND.sum(dtype=torch.float64))):
        raise ValueError("features are not all finite: NaN or infinity among them")

