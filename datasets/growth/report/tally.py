"""All that the report counts, gathered in one pass over the columns of a snapshot, tar by tar: memory does not grow with samples.

(But for the classes: 4 bytes a sample where they are no memory map.)

Letters: n samples of a tar, K classes.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ....cli.errors import DataError
from ..columns import CAUSAL, SETTLED, Columns, Decision, Reason, read_columns
from ..correction import combined
from ..snapshot import SOURCES, Snapshot, sidecar
from . import visits
from .pictures import Labels, Pictures
from .spread import Extremes, Spread

Counts = npt.NDArray[np.int64]
Sums = npt.NDArray[np.float64]

SERIES = ("gain", "corrected", "settled", "image_gain", "image_settled", "text_gain", "text_settled")
"""What is followed over arrival."""

_SHEETS = ("most", "least")
_PAIRS = ("closest", "inside", "outside", "cleaned", "cleaned_barely", "dropped", "dropped_barely")
_SHOWN = ("arrival", "gain", "corrected", "nearest", "distance", "alignment", "realigned")
_ARRIVAL_BINS, _LEAST_IN_BIN = 100, 20


class Coverage:
    """What became of the samples of every class: arrays over K + 1 places, first that of samples without a class, then class 0, 1, …."""

    def __init__(self, num_classes: int) -> None:
        size = num_classes + 1
        self.samples, self.kept, self.duplicates = (np.zeros(size, np.int64) for _ in range(3))
        self.gain_sums: Sums = np.zeros(size)
        """Of corrected gains, over the kept samples."""
        self.visits: Sums | None = np.zeros(size)
        """Expected visits an epoch, Σ p; of two phases the mean of both; None: the classes of what is trained from are not known."""

    def add(self, columns: Columns, labels: Labels | None) -> None:
        """Counts the samples of a tar; None: their classes are not known."""
        size, kept = len(self.samples), _kept(columns)
        places = np.zeros(len(kept), np.int64) if labels is None else labels.astype(np.int64) + 1
        self.samples += np.bincount(places, minlength=size)
        self.kept += np.bincount(places[kept], minlength=size)
        self.duplicates += np.bincount(places[columns["decision"] == Decision.DUPLICATE], minlength=size)
        self.gain_sums += np.bincount(places[kept], np.nan_to_num(columns["corrected"][kept].astype(np.float64)), size)

    def add_visits(self, labels: Labels | None, expected: Sums) -> None:
        """Counts expected visits of some samples of what is trained from."""
        if labels is None:
            self.visits = None
        elif self.visits is not None:
            self.visits += np.bincount(labels.astype(np.int64) + 1, expected, len(self.visits))


@dataclasses.dataclass(eq=False)
class Tally:
    """The counts."""

    decisions: Counts
    """int64[4] by `Decision`."""
    reasons: Counts
    """int64[5] by `Reason`."""
    over_arrival: dict[str, Spread]
    """Gains of the kept samples by bin of arrival, by name of `SERIES`."""
    gains: Spread
    """Corrected gains by `Decision`."""
    distances: Spread
    """Distances to the nearest earlier sample, in one group."""
    alignments: Spread
    """Cosines of image and caption, and of image and re-caption: two groups."""
    visits: Spread
    """Expected visits an epoch, as far as above 0; of the first and of every second epoch: two groups."""
    num_never: Counts
    """int64[2] samples that such an epoch never takes."""
    coverage: Coverage | None
    """None: there are no classes."""
    extremes: dict[str, Extremes]
    """Samples to be looked at.

        most, least                    kept ones by corrected gain
        closest, inside                duplicates by distance: the nearest, and those just within the threshold
        outside                        kept ones just beyond it
        cleaned, dropped               by alignment: the worst
        cleaned_barely, dropped_barely those that almost were not
    """


def tally(snapshot: Snapshot, pictures: Pictures, num_images: int) -> Tally:
    """Returns the counts of a snapshot.

    Args:
        num_images: samples to find of the most and the least informative; of each other sort a quarter as many.

    Raises:
        DataError: when a column is missing or damaged.
    """
    total = sum(source.num_samples for source in snapshot.sources)
    num_bins = min(max(total // _LEAST_IN_BIN, 1), _ARRIVAL_BINS)
    made = Tally(
        decisions=np.zeros(len(Decision), np.int64),
        reasons=np.zeros(len(Reason), np.int64),
        over_arrival={name: Spread(num_bins, 0, 2) for name in SERIES},
        gains=Spread(len(Decision), 0, 2),
        distances=Spread(1, 0, 2),
        alignments=Spread(2, -1, 1),
        visits=Spread(2, 0, visits.greatest(snapshot)),
        num_never=np.zeros(2, np.int64),
        coverage=_coverage(pictures),
        extremes={name: Extremes(num_images if name in _SHEETS else -(-num_images // 4)) for name in (*_SHEETS, *_PAIRS)},
    )
    for number, first, columns in _parts(snapshot):
        labels = pictures.labels[number]
        here = None if labels is None else labels[first : first + len(columns["arrival"])]
        _add(made, columns, columns["arrival"] * num_bins // total, here)
    for labels, first_visits, second_visits in visits.chunks(snapshot, pictures):
        _add_visits(made, labels, first_visits, second_visits)
    return made


def _parts(snapshot: Snapshot) -> Iterator[tuple[int, int, Columns]]:
    """Yields (source, row of the first sample, columns) of every tar: `CAUSAL` and `SETTLED`, `settled` as the snapshot combines image and
    text, and `nearest` and `distance` of the modality that says what is a duplicate.
    """
    how = snapshot.card.get("policy", {}).get("combine", "mean")
    for number, source in enumerate(snapshot.sources):
        first, name = 0, f"{number:06d}"
        for shard in source.shards:
            columns = read_columns(sidecar(snapshot.state / SOURCES / name, shard), CAUSAL)
            settled = read_columns(sidecar(snapshot.folder / SOURCES / name, shard), SETTLED)
            if len(settled["gain"]) != len(columns["arrival"]):
                raise DataError(f"{snapshot.folder}: its columns of {shard}, source {number}, are not as long as those of the state")
            by_image = columns["image_nearest"] >= 0
            columns |= settled | {"settled": combined(settled["image_settled"], settled["text_settled"], how)}
            columns["nearest"] = np.where(by_image, columns["image_nearest"], columns["text_nearest"])
            columns["distance"] = np.where(by_image, columns["image_nearest_distance"], columns["text_nearest_distance"])
            yield number, first, columns
            first += len(columns["arrival"])
        if first != source.num_samples:
            raise DataError(f"{snapshot.folder}: its columns of source {number} are not as long as snapshot.json says")


def _coverage(pictures: Pictures) -> Coverage | None:
    greatest = max((int(labels.max(initial=-1)) for labels in pictures.labels if labels is not None), default=-1)
    return None if greatest < 0 else Coverage(max(greatest + 1, len(pictures.class_names)))


def _add(made: Tally, columns: Columns, bins: Counts, labels: Labels | None) -> None:
    kept, zeros = _kept(columns), np.zeros(len(bins), np.int64)
    made.decisions += np.bincount(columns["decision"], minlength=len(Decision))
    made.reasons += np.bincount(columns["reason"], minlength=len(Reason))
    for name, spread in made.over_arrival.items():
        spread.add(bins[kept], columns[name][kept])
    made.gains.add(columns["decision"], columns["corrected"])
    made.distances.add(zeros, columns["distance"])
    made.alignments.add(zeros, columns["alignment"])
    made.alignments.add(zeros + 1, columns["realigned"])
    shown = {name: columns[name] for name in _SHOWN}
    for name, order in _orders(columns).items():
        made.extremes[name].add(order, shown)
    if made.coverage is not None:
        made.coverage.add(columns, labels)


def _add_visits(made: Tally, labels: Labels | None, first: Sums, second: Sums | None) -> None:
    for group, expected in enumerate((first, second)):
        if expected is not None:
            made.visits.add(np.full(len(expected), group), np.where(expected > 0, expected, np.nan))
            made.num_never[group] += int((expected <= 0).sum())
    if made.coverage is not None:
        made.coverage.add_visits(labels, first if second is None else (first + second) / 2)


def _orders(columns: Columns) -> dict[str, Sums]:
    """Returns, by name of `Tally.extremes`, what its rows are the lowest by; NaN: none of it."""
    decision, kept = columns["decision"], _kept(columns)
    gain, distance, before, after = (columns[name].astype(np.float64) for name in ("corrected", "distance", "alignment", "realigned"))
    is_duplicate, is_clean, is_dropped = (decision == which for which in (Decision.DUPLICATE, Decision.CLEAN, Decision.DROP))
    chosen = {
        "most": (kept, -gain),
        "least": (kept, gain),
        "closest": (is_duplicate, distance),
        "inside": (is_duplicate, -distance),
        "outside": (kept, distance),
        "cleaned": (is_clean, before),
        "cleaned_barely": (is_clean, after),
        "dropped": (is_dropped, before),
        "dropped_barely": (is_dropped, -np.fmax(before, after)),
    }
    return {name: np.where(wanted, order, np.nan) for name, (wanted, order) in chosen.items()}


def _kept(columns: Columns) -> npt.NDArray[np.bool_]:
    return np.isin(columns["decision"], [Decision.ACCEPT, Decision.CLEAN])
