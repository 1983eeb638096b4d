"""The downstream evaluators of a run, opened and checked before any process group or device is touched."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ...cli.errors import BambooError, UserError
from ...datasets.downstream.sets import describe
from ...linear_probe.metrics import Metric
from ...linear_probe.probe import Splits, open_splits
from ...linear_probe.protocols.convex import Convex
from ...linear_probe.protocols.neighbours import Knn
from ...linear_probe.protocols.outcome import Protocol, hold_out
from ...linear_probe.protocols.registry import KNN, PROTOCOLS
from ...linear_probe.protocols.sgd_heads import DinoLinear
from ...linear_probe.splits import Indices
from ...linear_probe.subsets import Subset, parse_subset
from ..settings.evaluators import DownstreamSettings, KnnSettings, ProbeSettings
from ..settings.pretrain import PretrainSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Downstream:
    """One evaluator: a set, opened, and how the weights are scored on it."""

    name: str
    settings: KnnSettings | ProbeSettings
    splits: Splits
    """The same object for evaluators of the same set, which share its features."""
    metric: Metric
    protocol: Protocol
    subset: Subset
    rows: Indices
    """Numbers of the training images in use, ascending."""

    def __str__(self) -> str:
        how = f"k-NN, k={self.settings.k}" if isinstance(self.settings, KnnSettings) else f"linear probe, {self.protocol.name}"
        sizes = f"{len(self.rows):,} train and {len(self.splits.test):,} test images, {len(self.splits.train.class_names)} classes"
        return f"{self.name}: {how}, on {self.settings.dataset} ({sizes}), every {self.settings.every}"


def open_evaluators(config: PretrainSettings) -> list[Downstream]:
    """Opens the sets of `config.evaluators`, each once, and checks that they can be scored on.

    Raises:
        UserError, DataError: as `open_both`, `parse_subset` and `hold_out`, with the evaluator named.
    """
    return list(_opened(config))


def _opened(config: PretrainSettings) -> Iterator[Downstream]:
    splits: dict[tuple[str, Path, bool], Splits] = {}
    for name, settings in config.evaluators.items():
        place = settings.dataset, settings.data_root, settings.any_counts
        try:
            if place not in splits:
                splits[place] = open_splits(settings.dataset, settings.data_root, any_counts=settings.any_counts)
            yield _checked(name, settings, splits[place])
        except BambooError as error:
            raise type(error)(f"evaluators.{name}.{error}" if isinstance(error, UserError) else f"evaluators.{name}: {error}") from None


def _checked(name: str, settings: KnnSettings | ProbeSettings, splits: Splits) -> Downstream:
    subset = parse_subset(settings.subset)
    rows = subset.rows(np.asarray(splits.train.labels, np.int64), splits.train.class_names, settings.seed)
    if isinstance(settings, KnnSettings) and settings.k > len(rows):
        raise UserError(f"k={settings.k}: there are {len(rows)} training images (subset={settings.subset}); give at most as many")
    protocol = _protocol(settings)
    if isinstance(protocol, Convex | DinoLinear):
        hold_out(splits.labels_of(rows), protocol.val_fraction, settings.seed, splits.validation_rows(subset))
    metric = describe(settings.dataset).metric
    return Downstream(name=name, settings=settings, splits=splits, metric=metric, protocol=protocol, subset=subset, rows=rows)


def _protocol(settings: DownstreamSettings) -> Protocol:
    if isinstance(settings, KnnSettings):
        return Knn(name="knn", neighbours=(settings.k,), temperature=settings.temperature, val_fraction=KNN.val_fraction)
    assert isinstance(settings, ProbeSettings), "the other kind"
    return PROTOCOLS[settings.protocol]
