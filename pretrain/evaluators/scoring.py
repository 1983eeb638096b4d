"""Scores on a downstream set from features that are there: exactly what `bamboo probe` does with them, without its folders and rows."""

import time
from typing import Any

import numpy as np
import torch

from ...cli.errors import BambooError
from ...linear_probe.metrics import Metric, Scores, score
from ...linear_probe.protocols.neighbours import Knn
from .features import Gathered
from .opened import Downstream


def score_downstream(evaluator: Downstream, train: Gathered, test: Gathered, device: torch.device) -> dict[str, Any]:
    """Returns the evaluator's part of a log row, with the seconds it took; `error` in place of a value where there can be none.

    There is none where the features are not finite, or all equal: that happens to weights in training, and does not end it.
    """
    started = time.perf_counter()
    settings = evaluator.settings
    about = {"dataset": settings.dataset, "protocol": evaluator.protocol.name, "subset": settings.subset, "metric": evaluator.metric}
    try:
        found = _knn(evaluator, train, test, device) if isinstance(evaluator.protocol, Knn) else _probe(evaluator, train, test, device)
    except BambooError as error:
        found = {"error": str(error)}
    return {**about, **found, "num_train": len(evaluator.rows), "solver_s": round(time.perf_counter() - started, 3)}


def _knn(evaluator: Downstream, train: Gathered, test: Gathered, device: torch.device) -> dict[str, Any]:
    assert isinstance(evaluator.protocol, Knn)
    splits, num_classes = evaluator.splits, len(evaluator.splits.train.class_names)
    keys, queries = train.rows(splits.labels_of(evaluator.rows)), test.rows(_labels(evaluator))
    everyone = np.arange(len(queries.labels))
    (guess,) = evaluator.protocol.vote(keys, evaluator.rows, queries.features, everyone, num_classes, device)
    scores = score(guess, queries.labels, num_classes)
    about = {"k": evaluator.protocol.neighbours[0], "temperature": evaluator.protocol.temperature}
    return {**about, **_scored(scores, evaluator.metric, queries.labels)}


def _probe(evaluator: Downstream, train: Gathered, test: Gathered, device: torch.device) -> dict[str, Any]:
    splits, expected = evaluator.splits, _labels(evaluator)
    outcome = evaluator.protocol.evaluate(
        train.rows(splits.labels_of(evaluator.rows)),
        test.rows(expected),
        len(splits.train.class_names),
        evaluator.metric,
        validation_rows=splits.validation_rows(evaluator.subset),
        seed=evaluator.settings.seed,
        device=device,
    )
    proof = {"certificate": outcome.certificate} if outcome.certificate else {}
    warnings = {"warnings": outcome.warnings} if outcome.warnings else {}
    return {**_scored(outcome.scores, evaluator.metric, expected), "chosen": outcome.chosen, **proof, **warnings}


def _labels(evaluator: Downstream) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.asarray(evaluator.splits.test.labels, np.int64)


def _scored(scores: Scores, metric: Metric, labels: np.ndarray[Any, np.dtype[np.int64]]) -> dict[str, Any]:
    accuracy = scores.metric(metric)
    both = {"top1": scores.top1.value, "mean_per_class": scores.mean_per_class.value}
    num_images = int((labels >= 0).sum())
    return {"value": accuracy.value, "standard_error": accuracy.standard_error, **both, "num_images": num_images}
