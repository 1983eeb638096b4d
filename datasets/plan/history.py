"""The plan of a run, in versions: from a given position of the order on, other weights, folders or windows hold.

    plan.json   format, version, the samples of an epoch as the run's durations count them, the number of the next version, and a list of
                {number, start, plan}; `plan` is all that the order depends on, weights by their hash

Positions are samples consumed, divided by `data.repeats` where samples are repeated.
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
    """What holds from position `start` on; its number keeps its draws apart from those of every other version of the run."""

    number: int
    start: int
    plan: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class History:
    """The versions of a run's plan, oldest first, the first of which starts at 0 unless its record was lost."""

    versions: tuple[PlanVersion, ...] = ()
    next_number: int = 0
    """Never given twice, also where a version was dropped."""
    epoch_samples: int = 0
    """Samples of an epoch of the run's first plan."""

    def at(self, position: int) -> int | None:
        """Returns which version holds at a position, as its place in the list; None: none does."""
        places = [i for i, version in enumerate(self.versions) if version.start <= position]
        return places[-1] if places else None

    def then(self, start: int, plan: dict[str, Any], epoch_samples: int) -> "History":
        """Returns the history in which `plan` holds from `start` on, and what began there or later is dropped."""
        kept = tuple(version for version in self.versions if version.start < start)
        added = PlanVersion(self.next_number, start, plan)
        return History((*kept, added), self.next_number + 1, self.epoch_samples if kept else epoch_samples)

    def until(self, place: int) -> "History":
        """Returns the history without the versions after the one at `place` in the list."""
        return dataclasses.replace(self, versions=self.versions[: place + 1])


def read_history(path: Path) -> History:
    """Returns what is recorded; an empty history where there is no record.

    Raises:
        DataError: when the record is damaged or of another version.
    """
    if not path.exists():
        return History()
    try:
        tree = json.loads(path.read_bytes())
        if (tree["format"], tree["version"]) != (FORMAT, VERSION):
            raise DataError(f"{path}: format {tree['format']} version {tree['version']}; this Bamboo reads {FORMAT} version {VERSION}")
        versions = tuple(PlanVersion(int(entry["number"]), int(entry["start"]), dict(entry["plan"])) for entry in tree["versions"])
        history = History(versions, int(tree["next_number"]), int(tree["epoch_samples"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: damaged ({type(error).__name__}: {error}); without it the run cannot go on exactly") from None
    starts = [version.start for version in versions]
    if not versions or starts != sorted(set(starts)) or max(version.number for version in versions) >= history.next_number:
        raise DataError(f"{path}: damaged (its versions do not follow one another); without it the run cannot go on exactly")
    return history


def write_history(path: Path, history: History) -> None:
    """Writes the record, atomically."""
    write_json(path, {"format": FORMAT, "version": VERSION, **dataclasses.asdict(history)})


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

    def boundary(self, position: int) -> int:
        """Returns the first position ≥ `position` at which an epoch begins of the version that holds at `position`, were it to go on."""
        version = int(self._starts.searchsorted(position, side="right")) - 1
        start = int(self._starts[version])
        return start + self._orders[version].boundary(position - start)

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

    def shards_in(self, first: int, last: int, num_ahead: int) -> list[int]:
        """Returns the ordinals of the shards in use at the positions first ≤ p ≤ last, then of the next `num_ahead` of that version."""
        earliest, latest = (self._starts.searchsorted([first, last], side="right") - 1).tolist()
        shards = list[int]()
        for version in range(earliest, latest + 1):
            start = int(self._starts[version])
            end = last if version == latest else int(self._starts[version + 1]) - 1
            shards += self._orders[version].shards_in(max(first, start) - start, end - start, num_ahead if version == latest else 0)
        return list(dict.fromkeys(shards))
