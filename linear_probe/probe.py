"""One cell of the table: a backbone on a set under a protocol, from images to a results row."""

import dataclasses
import datetime
import io
import platform
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import timm
import torch

from ..cli.errors import UserError
from ..datasets.atomic import sha256_json, write_bytes, write_json
from ..datasets.downstream import describe, open_set
from ..datasets.stores import ImageStore
from ..model_zoo.backbone import Backbone
from ..model_zoo.features import FeatureFolder, extract_features
from .metrics import Metric
from .protocol import Outcome, Protocol, Rows, evaluate
from .results import FILE_NAME, ResultRow, append_row, read_rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """What is to be evaluated, opened and checked."""

    backbone: Backbone
    dataset: str
    train: ImageStore
    test: ImageStore
    metric: Metric
    protocol: Protocol
    precision: Literal["bf16", "fp32"]
    seed: int

    @property
    def data_hash(self) -> str:
        """Identity of both splits."""
        return sha256_json([self.train.data_hash, self.test.data_hash])

    @property
    def identity(self) -> tuple[str | int, ...]:
        """As `ResultRow.identity`."""
        data, protocol = (self.backbone.checkpoint_hash, self.data_hash), self.protocol.digest
        return *data, protocol, self.precision, self.backbone.preprocessing.digest, self.seed, self.metric

    @property
    def folder_name(self) -> str:
        """Model, set, protocol and digest of the identity: no two cells share a folder."""
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{self.backbone.name}_{self.dataset}_{self.protocol.name}")[:100]
        return f"{name}-{sha256_json(self.identity)[:12]}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extraction:
    """How features are computed where they are not in the cache yet."""

    cache: Path
    batch_size: int
    workers: int
    device: torch.device


def open_cell(
    backbone: Backbone, dataset: str, root: Path, protocol: Protocol, *, precision: Literal["bf16", "fp32"], seed: int, any_counts: bool
) -> Cell:
    """Opens both splits of a set and checks that they belong together.

    Raises:
        UserError, DataError: as `open_set`; UserError when train and test have different classes or there are fewer than two.
    """
    train, test = (open_set(dataset, root, split, any_counts=any_counts) for split in ("train", "test"))
    if train.class_names != test.class_names:
        differing = sorted(set(train.class_names) ^ set(test.class_names))
        raise UserError(f"data_root={root}: train and test have different classes ({differing or 'in another order'})")
    if len(train.class_names) < 2:
        raise UserError(f"data_root={root}: {len(train.class_names)} class; a probe needs at least two")
    metric = describe(dataset).metric
    return Cell(
        backbone=backbone, dataset=dataset, train=train, test=test, metric=metric, protocol=protocol, precision=precision, seed=seed
    )


def recorded(cell: Cell, out: Path) -> ResultRow | None:
    """Returns the last row below `out` that has the cell's identity, or None."""
    return next((row for row in reversed(read_rows(out / FILE_NAME).rows) if row.identity == cell.identity), None)


def run(cell: Cell, extraction: Extraction, out: Path) -> ResultRow:
    """Evaluates a cell: its folder below `out` is written first, then its row in `out`/results.jsonl.

    The folder holds predictions.npz (`predictions`, `labels`: int64[N test]), split.npz and curve.json, curve.png of the validation scores.
    """
    started = time.monotonic()
    train, test = (
        _extract(cell, store, extraction, f"{cell.dataset} {split}") for store, split in ((cell.train, "train"), (cell.test, "test"))
    )
    seconds = {"features": time.monotonic() - started}
    outcome = evaluate(
        cell.protocol,
        Rows(train.features, train.labels),
        Rows(test.features, test.labels),
        len(cell.train.class_names),
        cell.metric,
        seed=cell.seed,
        device=extraction.device,
    )
    folder = out / cell.folder_name
    _write_folder(folder, outcome, test)
    row = _row(cell, outcome, seconds | outcome.seconds, folder.name, (train, test))
    append_row(out / FILE_NAME, row)
    return row


def warnings(row: ResultRow) -> list[str]:
    """Returns what a reader of the number should know: a λ at the grid's edge, an accuracy of the solve that was not reached."""
    found = []
    if row.details["plateau"]["at_edge"]:
        found.append(f"the chosen λ is the {row.details['plateau']['at_edge']}est of the grid: the best may lie outside")
    if not row.details["converged"]:
        found.append(f"the relative gap of the refit is certified to {row.certificate['relative_gap']:.1e} only")
    return found


def _extract(cell: Cell, store: ImageStore, extraction: Extraction, what: str) -> FeatureFolder:
    return extract_features(
        cell.backbone,
        store,
        extraction.cache,
        precision=cell.precision,
        batch_size=extraction.batch_size,
        workers=extraction.workers,
        device=extraction.device,
        what=what,
    )


def _row(cell: Cell, outcome: Outcome, seconds: dict[str, float], folder: str, features: Sequence[FeatureFolder]) -> ResultRow:
    chosen, accuracy = outcome.path.points[outcome.path.best], outcome.scores.metric(cell.metric)
    return ResultRow(
        model=cell.backbone.name,
        checkpoint_hash=cell.backbone.checkpoint_hash,
        dataset=cell.dataset,
        data_hash=cell.data_hash,
        protocol=cell.protocol.name,
        protocol_hash=cell.protocol.digest,
        precision=cell.precision,
        preprocessing=cell.backbone.preprocessing.digest,
        seed=cell.seed,
        metric=cell.metric,
        value=accuracy.value,
        standard_error=accuracy.standard_error,
        scores={name: dataclasses.asdict(outcome.scores.metric(name)) for name in ("top1", "mean_per_class")},
        certificate=dataclasses.asdict(outcome.fit.certificate),
        seconds={stage: round(value, 3) for stage, value in seconds.items()},
        versions={"torch": torch.__version__, "timm": timm.__version__, "numpy": np.__version__, "python": platform.python_version()},
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        details={
            "folder": folder,
            "features": [str(part.path) for part in features],
            "image_size": cell.backbone.preprocessing.image_size,
            "num_features": outcome.fit.classifier.weight_KD.shape[1],
            "num_classes": len(cell.train.class_names),
            "num_train": outcome.num_train,
            "num_val": len(outcome.split.val),
            "num_test": outcome.num_test,
            "split_sha256": outcome.split.digest,
            "penalty": outcome.penalty,
            "relative_ridge": chosen.ridge / outcome.mean_eigenvalue,
            "val_score": chosen.val_score,
            "plateau": dataclasses.asdict(outcome.plateau),
            "converged": outcome.fit.converged,
            "iterations": {"sweep": sum(point.iterations for point in outcome.path.points), "refit": outcome.fit.iterations},
            "passes": {"sweep": outcome.path.passes, "refit": outcome.fit.passes},
            "grid_visited": len(outcome.path.points),
        },
    )


def _write_folder(folder: Path, outcome: Outcome, test: FeatureFolder) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, predictions=outcome.predictions, labels=test.labels)
    write_bytes(folder / "predictions.npz", buffer.getvalue())
    outcome.split.write(folder / "split.npz")
    write_json(folder / "curve.json", outcome.curve)
    write_bytes(folder / "curve.png", curve_png(outcome.curve, outcome.path.best))


def curve_png(curve: Sequence[dict[str, Any]], best: int) -> bytes:
    """Returns a PNG of validation and training accuracy over λ, the chosen value marked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no pyplot: no global state, no display
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    ridges = [point["relative_ridge"] for point in curve]
    axes.semilogx(ridges, [100 * point["val_score"] for point in curve], marker=".", label="validation")
    axes.semilogx(ridges, [100 * point["train_accuracy"] for point in curve], linewidth=0.8, label="training (top-1)")
    axes.axvline(ridges[best], color="0.6", linewidth=0.8, linestyle="--", label="chosen")
    axes.set(xlabel="λ / n relative to the mean eigenvalue", ylabel="accuracy, %")
    axes.invert_xaxis()
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
