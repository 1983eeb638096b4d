"""The protocols that solve multinomial logistic regression to its optimum: `standard` and `clip`. They differ in how λ is searched, and
in what is kept of it when all rows train.
"""

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ...cli.errors import UserError
from ..metrics import Metric, score
from ..solver.path import Path, sweep
from ..solver.problem import Classifier, Fit, Matrix, Problem, open_problem
from ..splits import Split
from .outcome import Clock, Curve, CurvePoint, Labels, Outcome, Protocol, Rows, check_sides, hold_out, row_blocks
from .parametric import parametric_sweep

Score = Callable[[torch.Tensor], float]


@dataclasses.dataclass(frozen=True)
class Plateau:
    """How sharply validation pointed at the chosen λ."""

    num_values: int
    """Neighbouring values, the chosen one among them, whose validation score is within one standard error of its."""

    decades: float
    """log₁₀ of the ratio of the plateau's ends."""

    at_edge: str | None
    """"strong" or "weak" when the chosen value is the grid's first or last: the best λ may lie outside."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convex(Protocol):
    """Select λ on validation rows, refit on train + val to a certified gap, evaluate on test once."""

    val_fraction: float
    """Share of the training rows that select λ where the set has no official validation part, stratified by class."""

    sweep_tolerance: float
    """Decrement at which a solve of the search stops, relative to F or to what `search` says."""

    final_tolerance: float
    """Decrement of the refit relative to F."""

    final_gap: float
    """Certified relative gap that the refit aims for."""

    @abc.abstractmethod
    def ridges(self, scale: float, num_train: int) -> tuple[float, ...]:
        """Returns the grid as μ = λ / n of the rows that select, falling. `scale`: mean eigenvalue of the centred Gram of all rows."""

    @abc.abstractmethod
    def search(self, problem: Problem, num_train: int, ridges: tuple[float, ...], score_of: Score) -> Path:
        """Solves some or all of `ridges` on the first `num_train` rows and scores the others."""

    @abc.abstractmethod
    def refit_ridge(self, ridge: float, num_train: int, num_rows: int) -> float:
        """Returns the μ of the refit on all rows where `ridge` was best on the first `num_train`."""

    @abc.abstractmethod
    def axis(self, ridge: float, scale: float, num_train: int) -> tuple[str, float]:
        """Returns label and value of the curve's x."""

    def evaluate(
        self,
        train: Rows,
        test: Rows,
        num_classes: int,
        metric: Metric,
        *,
        validation_rows: Labels | None = None,
        seed: int = 0,
        device: torch.device | None = None,
    ) -> Outcome:
        """As `Protocol.evaluate`."""
        clock = Clock()
        check_sides(train, test)
        split = hold_out(train.labels, self.val_fraction, seed, validation_rows)
        problem, num_train = _problem(train, split, num_classes, device or torch.device("cpu")), len(split.train)
        num_rows = num_train + len(split.val)
        clock.lap("prepare")
        ridges = self.ridges(problem.gram.mean_eigenvalue, num_train)
        path = self.search(problem, num_train, ridges, _score_of(problem, train.labels[split.val], metric))
        clock.lap("sweep")
        ridge = self.refit_ridge(path.points[path.best].ridge, num_train, num_rows)
        fit = problem.fit(ridge, start=path.best_parameters_JE, tolerance=self.final_tolerance, gap=self.final_gap)
        clock.lap("refit")
        predictions = predict(fit.classifier, test.features)
        scores = score(predictions, test.labels, num_classes)
        clock.lap("test")
        plateau = _plateau(path, len(split.val), ridges)
        return Outcome(
            scores=scores,
            predictions=predictions,
            chosen={"penalty": ridge * num_rows, "relative_ridge": ridge / problem.gram.mean_eigenvalue},
            curve=self._curve(path, problem.gram.mean_eigenvalue, num_train),
            split=split,
            num_train=num_rows,
            num_val=len(split.val),
            num_test=int((test.labels >= 0).sum()),
            seconds=clock.laps,
            certificate=dataclasses.asdict(fit.certificate),
            warnings=_warnings(plateau, fit),
            details=_details(path, fit, plateau),
        )

    def _curve(self, path: Path, scale: float, num_train: int) -> Curve:
        axes = [self.axis(point.ridge, scale, num_train) for point in path.points]
        points = [CurvePoint(value, point.val_score, point.train_accuracy) for (_, value), point in zip(axes, path.points, strict=True)]
        return Curve(axes[0][0], True, path.best, tuple(points))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Standard(Convex):
    """`standard`: a grid of λ relative to the scale of the features, swept whole from strong to weak; the refit keeps λ / n.

    The values of the sweep are solved to `sweep_tolerance` (as `sweep`), the chosen one's refit to a certified gap.
    """

    grid: tuple[float, ...]
    """λ / n relative to the mean eigenvalue of the centred Gram matrix of all training rows, falling."""

    floor_share: float
    """Below this share of the loss log K of guessing, `sweep_tolerance` is relative to that share of it instead of F."""

    patience: int
    """Values without improvement after which the sweep ends, once every training row is right."""

    def ridges(self, scale: float, num_train: int) -> tuple[float, ...]:
        """Returns the grid in units of `scale`."""
        return tuple(value * scale for value in self.grid)

    def search(self, problem: Problem, num_train: int, ridges: tuple[float, ...], score_of: Score) -> Path:
        """Returns the warm-started path over the grid."""
        limits: dict[str, Any] = {"tolerance": self.sweep_tolerance, "floor_share": self.floor_share, "patience": self.patience}
        return sweep(problem, num_train, ridges, score_of, **limits)

    def refit_ridge(self, ridge: float, num_train: int, num_rows: int) -> float:
        """Returns the same λ / n."""
        return ridge

    def axis(self, ridge: float, scale: float, num_train: int) -> tuple[str, float]:
        """Returns λ / n over `scale`."""
        return "λ / n relative to the mean eigenvalue", ridge / scale


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip(Convex):
    """`clip`: the logistic regression of CLIP's evaluation (Radford et al. 2021, appendix A.3), on features as they are.

    λ (the 1/C of scikit-learn: F = (1/n) Σ CE + (λ/2n) ‖W‖²) lies on a logarithmic grid of 96 steps from 10⁻⁶ to 10⁶, of which about 15
    values are scored: seven two decades apart, then at every halving of the spacing both neighbours of the best so far. The refit on train
    + val keeps λ, so λ/n falls. Metric and official validation parts are the sets' own.

    Two things differ. Each value is solved to within `sweep_tolerance` of its optimum (as `parametric_sweep`: its validation score is that
    of the optimum to within a row or two), where the original stopped scikit-learn after 1,000 iterations wherever that was. And the
    original never said how much of train it held out where a set has no official validation part; here it is `val_fraction`.
    """

    weakest: float
    strongest: float
    num_steps: int
    """Steps of the grid between both ends."""

    coarse_steps: int
    """Steps between the values of the first round, a power of two."""

    def ridges(self, scale: float, num_train: int) -> tuple[float, ...]:
        """Returns λ / n over the whole grid."""
        high, low = math.log10(self.strongest), math.log10(self.weakest)
        return tuple(10.0 ** (high - (high - low) * step / self.num_steps) / num_train for step in range(self.num_steps + 1))

    def search(self, problem: Problem, num_train: int, ridges: tuple[float, ...], score_of: Score) -> Path:
        """Returns the values that the parametric search scores."""
        return parametric_sweep(problem, num_train, ridges, score_of, coarse=self.coarse_steps, tolerance=self.sweep_tolerance)

    def refit_ridge(self, ridge: float, num_train: int, num_rows: int) -> float:
        """Returns the same λ over the larger n."""
        return ridge * num_train / num_rows

    def axis(self, ridge: float, scale: float, num_train: int) -> tuple[str, float]:
        """Returns λ."""
        return "λ", ridge * num_train


def predict(classifier: Classifier, features: Matrix) -> Labels:
    """Returns the class of the highest logit for every row, int64[N]; features are read block by block."""
    blocks = row_blocks(features, np.arange(len(features)), classifier.weight_KD.device)
    found = [classifier.logits(block_BD).argmax(1).cpu().numpy() for block_BD in blocks]
    return np.concatenate(found).astype(np.int64) if found else np.empty(0, np.int64)


def _problem(train: Rows, split: Split, num_classes: int, device: torch.device) -> Problem:
    """Returns the problem whose first rows train and whose last rows validate."""
    order = np.concatenate([split.train, split.val])
    try:
        problem = open_problem(train.features, train.labels, order, num_classes, device=device)
    except ValueError as error:
        raise UserError(f"the training set cannot be probed: {error}") from None
    if not problem.gram.mean_eigenvalue > 0.0:
        raise UserError("the features are all equal: this backbone tells no image from another")
    return problem


def _score_of(problem: Problem, labels: Labels, metric: Metric) -> Score:
    """Returns the score of predictions that number the classes that occur, as the solver does."""
    present_J = problem.present_J.cpu().numpy()
    expected = np.searchsorted(present_J, labels)
    return lambda predictions: score(predictions.cpu().numpy(), expected, len(present_J)).metric(metric).value


def _plateau(path: Path, num_val: int, ridges: tuple[float, ...]) -> Plateau:
    best = path.points[path.best].val_score
    near = best - math.sqrt(max(best * (1.0 - best), 0.0) / num_val)
    first = last = path.best
    while first > 0 and path.points[first - 1].val_score >= near:
        first -= 1
    while last + 1 < len(path.points) and path.points[last + 1].val_score >= near:
        last += 1
    decades = math.log10(path.points[first].ridge / path.points[last].ridge)
    chosen = path.points[path.best].ridge
    edge = "strong" if chosen == ridges[0] else "weak" if chosen == ridges[-1] else None
    return Plateau(last - first + 1, decades, edge)


def _warnings(plateau: Plateau, fit: Fit) -> list[str]:
    found = []
    if plateau.at_edge:
        found.append(f"the chosen λ is the {plateau.at_edge}est of the grid: the best may lie outside")
    if not fit.converged:
        found.append(f"the relative gap of the refit is certified to {fit.certificate.relative_gap:.1e} only")
    return found


def _details(path: Path, fit: Fit, plateau: Plateau) -> dict[str, Any]:
    return {
        "plateau": dataclasses.asdict(plateau),
        "converged": fit.converged,
        "iterations": {"sweep": sum(point.iterations for point in path.points), "refit": fit.iterations},
        "passes": {"sweep": path.passes, "refit": fit.passes},
        "grid_visited": len(path.points),
    }
