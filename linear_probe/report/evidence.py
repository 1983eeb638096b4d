"""What an evaluation left behind in its folder: predictions, class names, and the curve along which it chose.

Older folders hold less. What is not there, or is not what it should be, is None, and `notes` says so; no folder stops a report.
"""

import dataclasses
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..metrics import wilson


@dataclasses.dataclass(frozen=True)
class ClassScore:
    """How one class fared."""

    name: str
    hits: int
    count: int

    @property
    def share(self) -> float:
        """Recall, in [0, 1]."""
        return self.hits / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the recall."""
        return wilson(self.hits, self.count)


@dataclasses.dataclass(frozen=True)
class Confusion:
    """Test images of one class that were taken for another."""

    label: str
    prediction: str
    count: int
    of: int
    """Test images of the class."""


@dataclasses.dataclass(frozen=True)
class Point:
    """One value that was tried, with its accuracies in [0, 1]."""

    x: float
    val_score: float
    train_score: float | None


@dataclasses.dataclass(frozen=True)
class Curve:
    """What was tried, in the order in which it was, and what was chosen."""

    x_label: str
    is_log: bool
    chosen: int | None
    points: tuple[Point, ...]


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What a folder holds."""

    classes: tuple[ClassScore, ...] | None
    """Classes with test images, the worst first."""

    confusions: tuple[Confusion, ...] | None
    """All pairs that were confused, the most frequent first."""

    curve: Curve | None
    notes: tuple[str, ...]


def read_evidence(folder: Path | None) -> Evidence:
    """Returns what the folder of an evaluation holds."""
    if folder is None or not folder.is_dir():
        return Evidence(None, None, None, ("the folder of this evaluation is not beside its row: no classes, confusions or curve",))
    notes: list[str] = []
    classes = confusions = None
    stored = _predictions(folder / "predictions.npz", notes)
    if stored is not None:
        classes, confusions = _by_class(*stored, _names(folder / "classes.json", notes))
    return Evidence(classes, confusions, _curve(folder / "curve.json", notes), tuple(notes))


def _predictions(file: Path, notes: list[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            predictions, labels = (np.asarray(arrays[name]).astype(np.int64) for name in ("predictions", "labels"))
    except FileNotFoundError:
        notes.append(f"no {file.name}: no classes and confusions")
        return None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        notes.append(f"{file.name} cannot be read ({error}): no classes and confusions")
        return None
    labelled = (labels >= 0) & (predictions >= 0) if predictions.shape == labels.shape else np.zeros(1, bool)
    if not labelled.any():
        notes.append(f"{file.name} holds no pairs of prediction and label: no classes and confusions")
        return None
    return predictions[labelled], labels[labelled]


def _names(file: Path, notes: list[str]) -> list[str]:
    names = _json(file)
    if isinstance(names, list):
        return [str(name) for name in names]
    notes.append(f"no {file.name}: classes go by their numbers")
    return []


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None


def _by_class(
    predictions_N: npt.NDArray[np.int64], labels_N: npt.NDArray[np.int64], names: list[str]
) -> tuple[tuple[ClassScore, ...], tuple[Confusion, ...]]:
    num_classes = int(max(predictions_N.max(), labels_N.max())) + 1
    names = names + [f"class {index}" for index in range(len(names), num_classes)]
    counts_K = np.bincount(labels_N, minlength=num_classes)
    hits_K = np.bincount(labels_N[predictions_N == labels_N], minlength=num_classes)
    scores = [ClassScore(names[index], int(hits_K[index]), int(counts_K[index])) for index in np.flatnonzero(counts_K)]
    wrong = predictions_N != labels_N
    pairs, pair_counts = np.unique(labels_N[wrong] * num_classes + predictions_N[wrong], return_counts=True)
    confusions = [
        Confusion(names[pair // num_classes], names[pair % num_classes], int(count), int(counts_K[pair // num_classes]))
        for pair, count in zip(pairs.tolist(), pair_counts.tolist(), strict=True)
    ]
    scores.sort(key=lambda score: score.share)
    confusions.sort(key=lambda confusion: -confusion.count)
    return tuple(scores), tuple(confusions)


def _curve(file: Path, notes: list[str]) -> Curve | None:
    if not file.exists():
        notes.append(f"no {file.name}: nothing was tried, or its trace was not kept")
        return None
    tree = _json(file)
    try:
        points = tuple(_point(entry) for entry in tree["points"])
        chosen = tree.get("chosen")
        inside = isinstance(chosen, int) and 0 <= chosen < len(points)
        curve = Curve(str(tree["x"]), bool(tree["log"]), chosen if inside else None, points)
    except (TypeError, KeyError, ValueError, AttributeError):
        notes.append(f"{file.name} is of another version: no curve")
        return None
    if not points or not all(_is_drawable(point, is_log=curve.is_log) for point in points):
        notes.append(f"{file.name} holds values that cannot be drawn: no curve")
        return None
    return curve


def _is_drawable(point: Point, *, is_log: bool) -> bool:
    finite = all(math.isfinite(value) for value in (point.x, point.val_score, point.train_score or 0.0))
    return finite and (point.x > 0 or not is_log)


def _point(entry: Any) -> Point:
    train = entry.get("train_score")
    return Point(float(entry["x"]), float(entry["val_score"]), None if train is None else float(train))
