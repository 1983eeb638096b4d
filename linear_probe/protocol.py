"""Protocols: how λ is chosen and what is reported, as data; and the one procedure that carries them out.

`standard`: λ from a grid relative to the scale of the features, chosen on a stratified validation split of the training set; refit on all
of it with λ/n kept; one evaluation on the test set. Convex throughout, and certified.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..cli.errors import UserError
from ..datasets.atomic import sha256_json
from .metrics import Metric, Scores, score
from .path import Path, sweep
from .solver import Classifier, Fit, Matrix, Problem, open_problem
from .splits import Split, stratified_split

_BLOCK_ROWS = 16384


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """Everything that decides a probe's number besides the features; two rows are comparable only at equal digest."""

    name: str

    grid: tuple[float, ...]
    """λ / n relative to the mean eigenvalue of the centred Gram matrix of all training rows, falling."""

    val_fraction: float
    """Share of the training rows that select λ, stratified by class."""

    sweep_tolerance: float
    """Decrement at which a solve of the sweep stops, relative to max(F, floor_share · log K)."""

    floor_share: float
    """Below this share of the loss log K of guessing, a solve of the sweep counts as interpolating."""

    patience: int
    """Values without improvement after which the sweep ends, once every training row is right."""

    final_tolerance: float
    """Decrement of the refit relative to F."""

    final_gap: float
    """Certified relative gap that the refit aims for."""

    @property
    def digest(self) -> str:
        """Hex SHA-256 of all fields."""
        return sha256_json(dataclasses.asdict(self))


STANDARD = Protocol(
    name="standard",
    grid=tuple(10.0 ** (2.0 - step / 4.0) for step in range(45)),  # 10² … 10⁻⁹, four a decade
    val_fraction=0.2,
    sweep_tolerance=1e-4,
    floor_share=0.01,
    patience=6,
    final_tolerance=1e-7,
    final_gap=1e-6,
)

PROTOCOLS = {protocol.name: protocol for protocol in (STANDARD,)}


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Features [N, D] with labels int64[N], -1 where a row does not count."""

    features: Matrix
    labels: npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Plateau:
    """How sharply validation pointed at the chosen λ."""

    num_values: int
    """Neighbouring grid values, the chosen one among them, whose validation score is within one standard error of its."""

    decades: float
    """log₁₀ of the ratio of the plateau's ends."""

    at_edge: str | None
    """"strong" or "weak" when the chosen value is the grid's first or last: the best λ may lie outside."""


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """A finished probe."""

    scores: Scores
    predictions: npt.NDArray[np.int64]
    """int64 class ids for every test row, also those without a label."""

    fit: Fit
    penalty: float
    """λ of the refit: ridge · n."""

    path: Path
    plateau: Plateau
    split: Split
    mean_eigenvalue: float
    num_train: int
    num_test: int
    seconds: dict[str, float]

    @property
    def curve(self) -> list[dict[str, Any]]:
        """The validation curve, one entry per visited λ, strongest first."""
        return [{"relative_ridge": point.ridge / self.mean_eigenvalue, **dataclasses.asdict(point)} for point in self.path.points]


def evaluate(
    protocol: Protocol, train: Rows, test: Rows, num_classes: int, metric: Metric, *, seed: int = 0, device: torch.device | None = None
) -> Outcome:
    """Carries out a protocol on features: select λ on validation rows, refit on train + val, evaluate on test once.

    Args:
        metric: what selects λ, and what the table shows.
        seed: of the validation split.

    Raises:
        UserError: when the training set cannot be split, or no test row has a label.
    """
    clock = _Clock()
    try:
        split = stratified_split(train.labels, protocol.val_fraction, seed)
    except ValueError as error:
        raise UserError(f"the training set cannot be probed: {error}") from None
    if not bool((test.labels >= 0).any()):
        raise UserError("the test set cannot be scored: none of its rows has a label")
    problem = _problem(train, split, num_classes, device or torch.device("cpu"))
    clock.lap("prepare")
    scale = problem.gram.mean_eigenvalue
    if not scale > 0.0:
        raise UserError("the features are all equal: this backbone tells no image from another")
    chooser = _chooser(problem, len(split.train), metric)
    path = sweep(
        problem,
        len(split.train),
        [value * scale for value in protocol.grid],
        chooser,
        tolerance=protocol.sweep_tolerance,
        floor_share=protocol.floor_share,
        patience=protocol.patience,
    )
    clock.lap("sweep")
    ridge = path.points[path.best].ridge
    fit = problem.fit(ridge, start=path.best_parameters_JE, tolerance=protocol.final_tolerance, gap=protocol.final_gap)
    clock.lap("refit")
    predictions = predict(fit.classifier, test.features)
    scores = score(predictions, test.labels, num_classes)
    clock.lap("test")
    return Outcome(
        scores=scores,
        predictions=predictions,
        fit=fit,
        penalty=ridge * len(problem.features_ND),
        path=path,
        plateau=_plateau(path, len(split.val), len(protocol.grid)),
        split=split,
        mean_eigenvalue=scale,
        num_train=len(problem.features_ND),
        num_test=int((test.labels >= 0).sum()),
        seconds=clock.laps,
    )


def predict(classifier: Classifier, features: Matrix) -> npt.NDArray[np.int64]:
    """Returns the class of the highest logit for every row, int64[N]; features are read block by block."""
    device = classifier.weight_KD.device
    found = [
        classifier.logits(torch.from_numpy(features[start : start + _BLOCK_ROWS].astype(np.float32)).to(device)).argmax(1).cpu().numpy()
        for start in range(0, len(features), _BLOCK_ROWS)
    ]
    return np.concatenate(found).astype(np.int64) if found else np.empty(0, np.int64)


def _problem(train: Rows, split: Split, num_classes: int, device: torch.device) -> Problem:
    """Returns the problem whose first rows train and whose last rows validate."""
    order = np.concatenate([split.train, split.val])
    try:
        return open_problem(train.features, train.labels, order, num_classes, device=device)
    except ValueError as error:
        raise UserError(f"the training set cannot be probed: {error}") from None


def _chooser(problem: Problem, num_train: int, metric: Metric) -> Callable[[torch.Tensor], float]:
    labels = problem.validation(num_train).labels_N1[:, 0].cpu().numpy()
    num_present = len(problem.present_J)
    return lambda predictions: score(predictions.cpu().numpy(), labels, num_present).metric(metric).value


def _plateau(path: Path, num_val: int, num_grid: int) -> Plateau:
    best = path.points[path.best].val_score
    near = best - math.sqrt(max(best * (1.0 - best), 0.0) / num_val)
    first = last = path.best
    while first > 0 and path.points[first - 1].val_score >= near:
        first -= 1
    while last + 1 < len(path.points) and path.points[last + 1].val_score >= near:
        last += 1
    decades = math.log10(path.points[first].ridge / path.points[last].ridge)
    edge = "strong" if path.best == 0 else "weak" if path.best == num_grid - 1 else None
    return Plateau(last - first + 1, decades, edge)


class _Clock:
    """Wall seconds by stage."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, stage: str) -> None:
        """Ends the stage that began with the last lap."""
        now = time.monotonic()
        self.laps[stage], self._last = now - self._last, now
