"""The plan of a run, in versions: from a given number of samples on, other weights, folders or windows hold.

plan.json   format, version, and a list of {start, plan}; `plan` is all that the order depends on, weights by their hash
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...cli.errors import DataError
from ..atomic import write_json
from .drawing import Ids
from .order import SampleOrder, Visits

FORMAT, VERSION = "bamboo-plan", 1


@dataclasses.dataclass(frozen=True)
class PlanVersion:
    """What holds from `start` samples on."""

    start: int
    plan: dict[str, Any]


def read_history(path: Path) -> list[PlanVersion]:
    """Returns the recorded versions, oldest first; none where there is no record.

    Raises:
        DataError: when the record is damaged or of another version.
    """
    if not path.exists():
        return []
    try:
        tree = json.loads(path.read_bytes())
        if (tree["format"], tree["version"]) != (FORMAT, VERSION):
            raise DataError(f"{path}: format {tree['format']} version {tree['version']}; this Bamboo reads {FORMAT} version {VERSION}")
        versions = [PlanVersion(int(entry["start"]), dict(entry["plan"])) for entry in tree["versions"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({type(error).__name__}: {error}); without it the run cannot go on exactly") from None
    if [version.start for version in versions] != sorted({version.start for version in versions}) or versions[:1] == []:
        raise DataError(f"{path}: damaged (its versions do not follow one another); without it the run cannot go on exactly")
    return versions


def write_history(path: Path, versions: Sequence[PlanVersion]) -> None:
    """Writes the record, atomically."""
    listed = [{"start": version.start, "plan": version.plan} for version in versions]
    write_json(path, {"format": FORMAT, "version": VERSION, "versions": listed})


class VersionedOrder:
    """Orders that follow one another, each beginning at its own position 0 where the version before it ends.

    Args:
        starts: first global position of each, increasing. Positions before the first are not asked for.
        orders: as many.
    """

    def __init__(self, starts: Sequence[int], orders: Sequence[SampleOrder]) -> None:
        assert len(starts) == len(orders) > 0
        self._starts, self._orders = np.array(starts, np.int64), tuple(orders)

    @property
    def epoch_samples(self) -> int:
        """Samples an epoch of the last version."""
        return self._orders[-1].epoch_samples

    def at(self, positions: Ids) -> Visits:
        """Returns the visits at any global positions, int64[n]."""
        versions = self._starts.searchsorted(positions, side="right") - 1
        assert (versions >= 0).all()
        ids, keys = np.empty(len(positions), np.int64), np.empty(len(positions), np.uint64)
        for version in np.unique(versions).tolist():
            chosen = versions == version
            ids[chosen], keys[chosen] = self._orders[version].at(positions[chosen] - self._starts[version])
        return Visits(ids, keys)

    def take(self, start: int, stop: int) -> Visits:
        """Returns the visits at the global positions start ≤ p < stop."""
        return self.at(np.arange(start, stop, dtype=np.int64))

    def shards_ahead(self, start: int, num_ahead: int) -> list[int]:
        """Returns the ordinals of the shards in use at position `start`, then of the next `num_ahead` of that version."""
        version = int(self._starts.searchsorted(start, side="right")) - 1
        return self._orders[version].shards_ahead(start - int(self._starts[version]), num_ahead)
