"""One cell of the table: a backbone on a set under a protocol, from images to a results row."""

import dataclasses
import datetime
import platform
import re
import time
from pathlib import Path
from typing import Any, Literal

import filelock
import numpy as np
import timm
import torch

from ..datasets.atomic import sha256_json
from ..datasets.downstream.sets import OpenedSplit, describe, open_both
from ..datasets.feature_folder import FeatureFolder
from ..datasets.ranks import Ranks
from ..model_zoo.backbone import Backbone
from ..model_zoo.features import extract_features
from .cell_folder import read_row, write_folder
from .metrics import Metric
from .protocols.outcome import Labels, Outcome, Protocol, Rows
from .results import FILE_NAME, ResultRow, append_row, read_rows
from .splits import Indices, digest_of
from .subsets import Subset, parse_subset


@dataclasses.dataclass(frozen=True, kw_only=True)
class Splits:
    """Both splits of a set, which belong together."""

    train: OpenedSplit
    test: OpenedSplit

    def labels_of(self, rows: Indices) -> Labels:
        """Returns int64[N] labels of the training images, -1 but for `rows`."""
        labels = np.full(len(self.train), -1, np.int64)
        labels[rows] = np.asarray(self.train.labels, np.int64)[rows]
        return labels

    def validation_rows(self, subset: Subset) -> Indices | None:
        """Returns the numbers of the training rows of the official validation part; None where there is none, or a subset is in use."""
        return self.train.validation_rows if subset.is_whole else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """What is to be evaluated, opened and checked."""

    backbone: Backbone
    model: str
    """Display name of the backbone."""

    dataset: str
    splits: Splits
    metric: Metric
    protocol: Protocol
    subset: Subset
    rows: Indices
    """Numbers of the training rows in use, ascending."""

    precision: Literal["bf16", "fp32"]
    seed: int

    @property
    def data_hash(self) -> str:
        """Identity of both splits."""
        return sha256_json([self.splits.train.data_hash, self.splits.test.data_hash])

    @property
    def identity(self) -> tuple[str | int, ...]:
        """As `ResultRow.identity`."""
        data, how = (self.backbone.checkpoint_hash, self.data_hash), (self.protocol.digest, self.precision)
        validation = (self.validation,) if self.validation else ()
        return *data, *how, self.backbone.preprocessing.digest, self.seed, self.metric, self.subset.name, *validation

    @property
    def validation_rows(self) -> Indices | None:
        """As `Splits.validation_rows`."""
        return self.splits.validation_rows(self.subset)

    @property
    def validation(self) -> str:
        """As `ResultRow.validation`."""
        return "" if self.validation_rows is None or self.protocol.selected_on != "validation" else digest_of(self.validation_rows)

    @property
    def folder_name(self) -> str:
        """Model, set, protocol, subset and digest of the identity: no two cells share a folder."""
        parts = [self.model, self.dataset, self.protocol.name, *([] if self.subset.is_whole else [self.subset.name])]
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(parts))[:100]
        return f"{name}-{sha256_json([*self.identity, self.model])[:12]}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extraction:
    """How features are computed where they are not in the cache yet."""

    cache: Path
    batch_size: int
    workers: int
    device: torch.device


@dataclasses.dataclass(frozen=True, eq=False)
class CellFeatures:
    """The features of both splits, and the seconds that it took to have them."""

    train: FeatureFolder
    test: FeatureFolder
    seconds: float


def open_splits(dataset: str, root: Path, *, any_counts: bool) -> Splits:
    """Opens both splits of a set and checks that they belong together.

    Raises:
        UserError, DataError: as `open_both`.
    """
    train, test = open_both(dataset, root, any_counts=any_counts)
    return Splits(train=train, test=test)


def open_cell(
    backbone: Backbone,
    dataset: str,
    splits: Splits,
    protocol: Protocol,
    *,
    precision: Literal["bf16", "fp32"],
    seed: int,
    subset: str = "100p",
    model: str | None = None,
) -> Cell:
    """Returns the cell of a backbone on an opened set.

    Args:
        dataset: the name that `splits` were opened by.
        subset: `10p`, `5shot`, …, as `parse_subset`.
        model: display name; None: the backbone's own.

    Raises:
        UserError: for a subset that is none, or that the set has too few rows for.
    """
    parsed = parse_subset(subset)
    rows = parsed.rows(np.asarray(splits.train.labels, np.int64), splits.train.class_names, seed)
    name = backbone.name if model is None else model
    return Cell(
        backbone=backbone,
        model=name,
        dataset=dataset,
        splits=splits,
        metric=describe(dataset).metric,
        protocol=protocol,
        subset=parsed,
        rows=rows,
        precision=precision,
        seed=seed,
    )


def recorded(cell: Cell, out: Path) -> ResultRow | None:
    """Returns the row that the cell has below `out`, as `look_up`, and sees to it that `out`/results.jsonl holds it under its name."""
    row, is_listed = look_up(cell, out)
    if row is not None and not is_listed:
        append_row(out / FILE_NAME, row)
    return row


def look_up(cell: Cell, out: Path) -> tuple[ResultRow | None, bool]:
    """Returns the row that the cell has below `out`, and whether it stands in `out`/results.jsonl; nothing is written.

    It is the last row of the cell's identity, model name and set's name in that file; or else, after a crash between folder and file, the
    one in the cell's own finished folder; or else one of the same identity under other names, given the cell's.
    """
    same = [row for row in read_rows(out / FILE_NAME).rows if row.identity == cell.identity]
    named = [row for row in same if (row.model, row.dataset) == (cell.model, cell.dataset)]
    if named:
        return named[-1], True
    own = read_row(out / cell.folder_name)
    if own is not None and own.identity == cell.identity:
        return own, False
    return (dataclasses.replace(same[-1], model=cell.model, dataset=cell.dataset), False) if same else (None, False)


def run(cell: Cell, extraction: Extraction, out: Path, *, force: bool = False) -> ResultRow:
    """Evaluates a cell in this process: its features, then `evaluate_cell`."""
    return evaluate_cell(cell, cell_features(cell, extraction), extraction.device, out, force=force)


def cell_features(cell: Cell, extraction: Extraction, ranks: Ranks | None = None) -> CellFeatures:
    """Returns the features of both splits, computed where they are not in the cache, by all `ranks` together."""
    started = time.monotonic()
    train, test = (
        extract_features(
            cell.backbone,
            store,
            extraction.cache,
            precision=cell.precision,
            batch_size=extraction.batch_size,
            workers=extraction.workers,
            device=extraction.device,
            what=f"{cell.dataset} {split}",
            ranks=ranks,
        )
        for store, split in ((cell.splits.train, "train"), (cell.splits.test, "test"))
    )
    return CellFeatures(train, test, time.monotonic() - started)


def evaluate_cell(cell: Cell, features: CellFeatures, device: torch.device, out: Path, *, force: bool = False) -> ResultRow:
    """Carries out the cell's protocol; its folder below `out` is written first, then its row in `out`/results.jsonl.

    A process that has the same cell in hand is waited for: the lock in `out`/locks goes with its process. If there is a row then, it is
    returned, except with `force`.
    """
    lock = out / "locks" / f"{cell.folder_name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(lock):
        row = None if force else recorded(cell, out)
        return _evaluate(cell, features, device, out) if row is None else row


def _evaluate(cell: Cell, features: CellFeatures, device: torch.device, out: Path) -> ResultRow:
    outcome = cell.protocol.evaluate(
        Rows(features.train.features, cell.splits.labels_of(cell.rows)),
        Rows(features.test.features, features.test.labels),
        len(cell.splits.train.class_names),
        cell.metric,
        validation_rows=cell.validation_rows,
        seed=cell.seed,
        device=device,
    )
    row, names = _row(cell, outcome, features), cell.splits.train.class_names
    write_folder(out / cell.folder_name, outcome, row, rows=cell.rows, labels=features.test.labels, class_names=names)
    append_row(out / FILE_NAME, row)
    return row


def _row(cell: Cell, outcome: Outcome, features: CellFeatures) -> ResultRow:
    accuracy = outcome.scores.metric(cell.metric)
    both = {"top1": outcome.scores.top1, "mean_per_class": outcome.scores.mean_per_class}
    seconds = {"features": features.seconds, **outcome.seconds}
    return ResultRow(
        model=cell.model,
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
        scores={name: dataclasses.asdict(score) for name, score in both.items()},
        certificate=outcome.certificate,
        seconds={stage: round(value, 3) for stage, value in seconds.items()},
        versions={"torch": torch.__version__, "timm": timm.__version__, "numpy": np.__version__, "python": platform.python_version()},
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        details=_details(cell, outcome, features),
        subset=cell.subset.name,
        selected_on=cell.protocol.selected_on,
        validation=cell.validation,
    )


def _details(cell: Cell, outcome: Outcome, features: CellFeatures) -> dict[str, Any]:
    curve, split = outcome.curve, outcome.split
    return {
        "folder": cell.folder_name,
        "checkpoint": cell.backbone.checkpoint,
        "features": [str(features.train.path), str(features.test.path)],
        "layout": cell.splits.train.layout,
        "notes": list(dict.fromkeys([*cell.splits.train.notes, *cell.splits.test.notes])),
        "image_size": cell.backbone.preprocessing.image_size,
        "num_features": features.train.features.shape[1],
        "num_classes": len(cell.splits.train.class_names),
        "num_train": outcome.num_train,
        "num_val": outcome.num_val,
        "num_test": outcome.num_test,
        "rows_sha256": digest_of(cell.rows),
        "split_sha256": None if split is None else split.digest,
        "chosen": outcome.chosen,
        "val_score": None if curve is None or split is None else curve.points[curve.chosen].val_score,
        "variants": outcome.variants,
        "warnings": outcome.warnings,
        **outcome.details,
    }
