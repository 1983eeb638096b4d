"""Accuracies with their standard errors. Rows whose label is negative (none, or padding) do not count anywhere.

Shape letters: N rows, K classes.
"""

import dataclasses
import math
from typing import Literal

import numpy as np
import numpy.typing as npt

Metric = Literal["top1", "mean_per_class"]

_Z_95 = 1.959963984540054


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """A share in [0, 1], its standard error, and a 95 % interval."""

    value: float
    standard_error: float
    interval: tuple[float, float]


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """What one set of predictions is worth."""

    top1: Accuracy
    mean_per_class: Accuracy
    per_class_K: npt.NDArray[np.float64]
    """Recall by class, NaN where a class has no row."""

    counts_K: npt.NDArray[np.int64]

    def metric(self, name: Metric) -> Accuracy:
        """Returns the accuracy that `name` calls for."""
        return self.top1 if name == "top1" else self.mean_per_class


def score(predictions_N: npt.NDArray[np.int64], labels_N: npt.NDArray[np.int64], num_classes: int) -> Scores:
    """Returns top-1 and mean per-class accuracy with standard errors.

    top-1:           p = hits / n,                   se = √(p (1 − p) / n),                 Wilson interval
    mean per class:  m = (1/K′) Σ_c p_c,             se = (1/K′) √(Σ_c p_c (1 − p_c) / n_c), m ± 1.96 se within [0, 1]
    over the K′ classes that have rows: the errors of independent samples, in the second case stratified by class.

    Raises:
        ValueError: when no row has a label, lengths differ, or a label is ≥ `num_classes`.
    """
    if predictions_N.shape != labels_N.shape:
        raise ValueError(f"{predictions_N.shape} predictions for {labels_N.shape} labels: must be of one length")
    labelled = labels_N >= 0
    predicted, expected = predictions_N[labelled], labels_N[labelled]
    if not len(expected):
        raise ValueError("no row has a label: there is nothing to score")
    if int(expected.max()) >= num_classes:
        raise ValueError(f"label {int(expected.max())}: must be below num_classes={num_classes}")
    counts_K = np.bincount(expected, minlength=num_classes)
    hits_K = np.bincount(expected[predicted == expected], minlength=num_classes)
    share = float(hits_K.sum() / counts_K.sum())
    top1 = Accuracy(share, math.sqrt(share * (1.0 - share) / len(expected)), wilson(int(hits_K.sum()), len(expected)))
    per_class_K = np.full(num_classes, np.nan)
    np.divide(hits_K, counts_K, out=per_class_K, where=counts_K > 0)
    return Scores(top1, _mean_per_class(per_class_K, counts_K), per_class_K, counts_K)


def wilson(hits: int, count: int, z: float = _Z_95) -> tuple[float, float]:
    """Returns Wilson's score interval of a share, by default 95 % (Wilson 1927).

    (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n)
    """
    if not 0 <= hits <= count or count < 1:
        raise ValueError(f"{hits} hits of {count}: must be 0 ≤ hits ≤ count, count ≥ 1")
    share, scale = hits / count, 1.0 + z * z / count
    middle = (share + z * z / (2 * count)) / scale
    half = z / scale * math.sqrt(share * (1.0 - share) / count + z * z / (4 * count * count))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _mean_per_class(per_class_K: npt.NDArray[np.float64], counts_K: npt.NDArray[np.int64]) -> Accuracy:
    seen = counts_K > 0
    shares, counts = per_class_K[seen], counts_K[seen]
    mean = float(shares.mean())
    error = float(np.sqrt((shares * (1.0 - shares) / counts).sum()) / len(shares))
    return Accuracy(mean, error, (max(mean - _Z_95 * error, 0.0), min(mean + _Z_95 * error, 1.0)))
