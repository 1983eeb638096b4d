"""Weight columns and indices without a file of images, for the tests of the plan."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from bamboo.datasets.index import Index
from bamboo.datasets.plan.rates import ONE, Rates, open_rates
from bamboo.datasets.plan.weighting import Weighting, compile_rates

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def index_of(counts: Counts, labels: list[list[int]] | None = None) -> Index:
    """Returns an index of as many samples, unlabelled unless labels are given."""
    total = int(counts.sum())
    labels = [[] for _ in range(total)] if labels is None else labels
    starts = np.cumsum([0, *map(len, labels)]).astype(np.int32)
    flat = np.array([label for row in labels for label in row], np.int32)
    zeros = np.zeros(total, np.int64)
    small = zeros.astype(np.int32)
    nothing = np.zeros(total + 1, np.int32)
    shard = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    return Index(shard, zeros, zeros, small, small, starts, flat, np.zeros(0, np.float16), nothing, zeros.astype(np.uint64))


def compiled(folder: Path, counts: Counts, weights: Floats | None, labels: list[list[int]] | None = None, **settings: object) -> Rates:
    """Returns the rates that a weight column makes, compiled in `folder`."""
    path = None
    if weights is not None:
        path = folder / "weights.npy"
        np.save(path, weights)
    weighting = Weighting(weights=path, **settings)  # type: ignore[arg-type]  # settings by name
    compile_rates(weighting, index_of(counts, labels), counts, folder / "rates", "sampling.weights")
    return open_rates(folder / "rates", counts)


def rates_of(rates: Rates) -> Floats:
    """Returns float64[N] visits an epoch of every sample."""
    units: Floats = np.concatenate([rates.of_shard(shard) for shard in range(len(rates.starts) - 1)]) / ONE
    return units
