"""Rows, and folders as evaluations leave them, for the tests of the report."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from bamboo.linear_probe.failures import Failure
from bamboo.linear_probe.results import ResultRow

HOSTILE = '<script>alert("a")</script> x_b|c_ 5% & {$1} #~^\\ [z]\n*q* `r`'

_ROW = ResultRow(
    model="run",
    checkpoint_hash="c" * 64,
    dataset="cifar10",
    data_hash="d" * 64,
    protocol="standard",
    protocol_hash="p" * 64,
    subset="100p",
    selected_on="validation",
    precision="bf16",
    preprocessing="e" * 64,
    seed=0,
    metric="top1",
    value=0.5,
    standard_error=0.005,
    scores={
        "top1": {"value": 0.5, "standard_error": 0.005, "interval": [0.49, 0.51]},
        "mean_per_class": {"value": 0.45, "standard_error": 0.006, "interval": [0.44, 0.46]},
    },
    certificate={"relative_gap": 1e-7},
    seconds={"features": 2.5, "sweep": 1.25},
    versions={"torch": "9.9", "timm": "8.8"},
    date="2026-01-01T00:00:00+00:00",
    details={"folder": "cell", "num_classes": 3, "num_train": 1000, "num_val": 200, "num_test": 500, "chosen": {"penalty": 0.25}},
)


def row(**changes: Any) -> ResultRow:
    """Returns a row of `run` on cifar10 under `standard`, 50 ± 0.5 %, but for the given fields; `details` are added to its own."""
    details = {**_ROW.details, **changes.pop("details", {})}
    return dataclasses.replace(_ROW, **changes, details=details)


def failure(**changes: str) -> Failure:
    """Returns a failed cell of `run` on pet, later than the rows, but for the given fields."""
    facts = {"model": "run", "checkpoint": "runs/run", "dataset": "pet", "protocol": "standard", "subset": "100p", "reason": "no layout"}
    return Failure(**{**facts, "date": "2026-01-02T00:00:00+00:00", **changes})


def fill_folder(folder: Path) -> None:
    """Writes what an evaluation leaves: 3 classes, recalls 1/4, 3/4, 4/4, the pair (0, 2) confused thrice; three λ, the second chosen."""
    folder.mkdir(parents=True)
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2], np.int64)
    predictions = np.array([0, 2, 2, 2, 1, 1, 1, 0, 2, 2, 2, 2], np.int64)
    np.savez_compressed(folder / "predictions.npz", predictions=predictions, labels=labels)
    (folder / "classes.json").write_text(json.dumps(["apple", HOSTILE, "cherry"]))
    points = [{"x": x, "val_score": val, "train_score": train} for x, val, train in ((100.0, 0.4, 0.5), (1.0, 0.7, 0.8), (0.01, 0.6, None))]
    (folder / "curve.json").write_text(json.dumps({"x": "λ <x>", "log": True, "chosen": 1, "points": points}))
