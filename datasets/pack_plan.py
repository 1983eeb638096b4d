"""Which sample goes into which shard: decided before any work, from the source and the options alone."""

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from .atomic import sha256_json
from .counters import key, mix
from .sources import Source

_SHUFFLE_STREAM = 0x5041434B  # "PACK": keeps this use of the seed apart from any other


@dataclasses.dataclass(frozen=True, eq=False)
class PackPlan:
    """The order of the records, the bounds of the shards in it, and what both were made from."""

    order: npt.NDArray[np.int64]
    bounds: tuple[tuple[int, int], ...]
    options: dict[str, Any]
    fingerprint: str

    @property
    def identity(self) -> str:
        """Hex SHA-256: equal exactly when the packed folder must be."""
        return sha256_json([self.options, self.fingerprint])


def make_plan(
    source: Source,
    options: dict[str, Any],
    seed: int | None,
    num_samples: int | None,
    num_bytes: int | None,
    groups: npt.NDArray[np.int64] | None = None,
) -> PackPlan:
    """Returns the plan for shards of at most `num_samples` records, or else of at most `num_bytes` source bytes.

    The order is the records sorted by a keyed hash of their number, or the source's own where `seed` is None. With `groups`, one for
    each record, it is so within each group, the groups stand in ascending order, and no shard has records of two. What they were made
    from must stand in `options`.
    """
    numbers = np.arange(len(source.records), dtype=np.int64)
    order = numbers if seed is None else np.argsort(mix(numbers.astype(np.uint64) ^ key(_SHUFFLE_STREAM, seed)), kind="stable")
    edges = [0, len(order)]
    if groups is not None:
        order = order[np.argsort(groups[order], kind="stable")]
        edges[1:1] = (np.flatnonzero(np.diff(groups[order])) + 1).tolist()
    bounds: list[tuple[int, int]] = []
    for first, end in pairwise(edges):
        if num_samples is not None:
            bounds += [(start, min(start + num_samples, end)) for start in range(first, end, num_samples)]
        else:
            assert num_bytes is not None, "one of the two is always given"
            cuts = _cut_by_bytes([max(source.records[i].size_bytes, 0) for i in order[first:end]], num_bytes)
            bounds += [(first + start, first + stop) for start, stop in cuts]
    return PackPlan(order, tuple(bounds), options, source.fingerprint())


def _cut_by_bytes(sizes: Sequence[int], num_bytes: int) -> list[tuple[int, int]]:
    """Returns shards filled in order, each until the next record would exceed `num_bytes`; one larger record fills one alone."""
    bounds: list[tuple[int, int]] = []
    start, filled = 0, 0
    for i, size in enumerate(sizes):
        if i > start and filled + size > num_bytes:
            bounds.append((start, i))
            start, filled = i, 0
        filled += size
    return [*bounds, (start, len(sizes))]
