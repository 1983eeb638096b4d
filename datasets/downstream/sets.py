"""Downstream sets, opened and checked: labelled images with an official train/test split, in the layouts that users have on disk.

`facts.SETS` says what is known of each set, `layouts` where it may lie; here the two meet. `folder` and `shards` take any set of one's
own.
"""

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ...cli.errors import BambooError, DataError, UserError
from ..stores import ImageStore
from .contents import require_filled, require_no_copies
from .facts import SETS, DownstreamSet, Metric, SplitName, describe
from .layouts import Layout, layouts
from .listed import ListedImages
from .listing import Listing, require_disjoint, require_whole

__all__ = [
    "SETS",
    "DownstreamSet",
    "Metric",
    "OpenedSplit",
    "SplitName",
    "describe",
    "open_both",
    "open_both_described",
    "open_described",
    "open_set",
]

_SHOWN = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenedSplit:
    """One split of a set: an `ImageStore`, and what a reader of a score on it should know. Picklable."""

    store: ImageStore
    layout: str
    """The layout that it was read from."""

    place: Path
    """The folder of that layout."""

    notes: tuple[str, ...] = ()
    """Choices that the set leaves open, as they were made: partition, background class, draw."""

    validation_rows: npt.NDArray[np.int64] | None = None
    """int64[V] numbers of the samples that are the official validation part of a training split; None where there is none."""

    def __len__(self) -> int:
        return len(self.store)

    @property
    def labels(self) -> npt.NDArray[np.integer]:
        """int64[N] class ids, 0 ≤ label < number of classes."""
        return self.store.labels

    @property
    def class_names(self) -> list[str]:
        """Class names by class id."""
        return self.store.class_names

    @property
    def data_hash(self) -> str:
        """Hex SHA-256 identity of images, labels and classes."""
        return self.store.data_hash

    def load(self, sample: int) -> torch.Tensor:
        """Returns uint8[3, H, W] in [0, 255]; raises UnreadableImageError or DataError."""
        return self.store.load(sample)

    def name(self, sample: int) -> str:
        """Returns the sample's name for messages."""
        return self.store.name(sample)


def open_both(name: str, root: Path, *, any_counts: bool = False) -> tuple[OpenedSplit, OpenedSplit]:
    """Returns the training and the test split of the set `name` below `root`, which were found to belong together.

    Args:
        name, any_counts: as for `open_set`.

    Raises:
        UserError: as `open_set`, and when the splits have different classes or there are fewer than two.
        DataError: as `open_set`, and for training images among those of the test or of the validation part, as `require_no_copies`.
    """
    return open_both_described(describe(name), root, any_counts=any_counts)


def open_both_described(described: DownstreamSet, root: Path, *, any_counts: bool = False) -> tuple[OpenedSplit, OpenedSplit]:
    """Returns both splits of a described set, as `open_both`."""
    train = open_described(described, root, "train", any_counts=any_counts)
    test = open_described(described, root, "test", any_counts=any_counts)
    if train.class_names != test.class_names:
        differing = sorted(set(train.class_names) ^ set(test.class_names))
        raise UserError(f"data_root={root}: train and test have different classes ({differing or 'in another order'})")
    if len(train.class_names) < 2:
        raise UserError(f"data_root={root}: {len(train.class_names)} class; a probe needs at least two")
    require_no_copies(train.store, test.store, train.validation_rows)
    return train, test


def open_set(name: str, root: Path, split: SplitName, *, any_counts: bool = False) -> OpenedSplit:
    """Returns one split of the set `name` below `root`.

    Args:
        name: a key of `SETS`.
        any_counts: accept other numbers of images than the official ones (a subset of one's own).

    Raises:
        UserError: for an unknown name, a root that does not exist, or one that holds none of the set's layouts.
        DataError: for damaged or empty files, lists that are not what they should be, an empty class, or counts that are not the
            official ones.
    """
    return open_described(describe(name), root, split, any_counts=any_counts)


def open_described(described: DownstreamSet, root: Path, split: SplitName, *, any_counts: bool = False) -> OpenedSplit:
    """Returns one split of a described set, as `open_set`."""
    layout, place = find_layout(described, root)
    found = layout.read(described, place, split)
    if isinstance(found, Listing):
        if layout.by_list:
            _require_sound(described, layout, place, found, split)
        store = ListedImages(found.folder, found.files, found.labels, found.class_names)
        require_filled(store, found.source)
        opened = OpenedSplit(store=store, layout=layout.name, place=place, notes=found.notes, validation_rows=found.validation_rows)
    else:
        opened = OpenedSplit(store=found, layout=layout.name, place=place)
    faults = [*_class_faults(described, opened), *([] if any_counts else _count_faults(described, opened, split, layout))]
    if faults:
        advice = "" if any_counts else " (any_counts=true accepts a subset)"
        raise DataError("\n  ".join([f"{place}: not {described.name}'s {split} split{advice}:", *faults]))
    return opened


def find_layout(described: DownstreamSet, root: Path) -> tuple[Layout, Path]:
    """Returns the first layout of the set that lies below `root`, and its folder.

    Raises:
        UserError: when there is no such folder, or none of the layouts in it.
    """
    if not root.is_dir():
        raise UserError(f"data_root={root}: no such folder; {described.recipe}")
    for layout in layouts(described):
        place = layout.find(root)
        if place is not None:
            return layout, place
    names = " or ".join(layout.name for layout in layouts(described))
    raise UserError(f"data_root={root}: no {described.name} in it (looked for {names}); {described.recipe}")


def _require_sound(described: DownstreamSet, layout: Layout, place: Path, listing: Listing, split: SplitName) -> None:
    """Raises DataError for files of a list that are missing, listed twice, or in the other split too."""
    require_whole(listing)
    other = layout.read(described, place, "test" if split == "train" else "train")
    assert isinstance(other, Listing)
    require_disjoint(*((listing, other) if split == "train" else (other, listing)))


def _class_faults(described: DownstreamSet, opened: OpenedSplit) -> list[str]:
    """Returns what is wrong with the classes, whatever the number of images."""
    names, labels = opened.class_names, opened.labels
    if described.class_names is not None and tuple(names) != described.class_names:
        missing, other = set(described.class_names) - set(names), set(names) - set(described.class_names)
        return [f"its classes are not the official ones (missing: {sorted(missing)}; not known: {sorted(other)})"]
    if described.num_classes is not None and len(names) != described.num_classes:
        return [f"{len(names)} classes, the official set has {described.num_classes}"]
    if not len(labels):
        return ["no image"]
    low, high = int(labels.min()), int(labels.max())
    return [f"labels {low} to {high}, but {len(names)} classes"] if low < 0 or high >= len(names) else []


def _count_faults(described: DownstreamSet, opened: OpenedSplit, split: SplitName, layout: Layout) -> list[str]:
    """Returns how the numbers of images differ from the official ones."""
    if described.counts is None or _class_faults(described, opened):
        return []
    faults, wanted = [], described.counts[split]
    if len(opened) != wanted:
        faults.append(f"{len(opened):,} images, the official {split} split has {wanted:,}")
    per_class = np.bincount(opened.labels, minlength=len(opened.class_names))
    counted = list(zip(opened.class_names, per_class.tolist(), strict=True))
    each = described.class_counts.get(split)
    if each is not None and (wrong := [f"{name} has {count:,}" for name, count in counted if count != each]):
        faults.append(f"{each:,} images per class are official, but {_first(wrong)}")
    elif each is None and (empty := [name for name, count in counted if not count]):
        faults.append(f"classes without an image: {_first(empty)}")
    rows = opened.validation_rows
    if rows is not None and described.validation is not None and len(rows) != described.validation:
        faults.append(f"{len(rows):,} images of the validation part, the official one has {described.validation:,}")
    if faults and _look_swapped(described, opened, split, layout):
        faults.append("train and test look swapped: each has about the size of the other")
    return faults


def _look_swapped(described: DownstreamSet, opened: OpenedSplit, split: SplitName, layout: Layout) -> bool:
    """Whether the two splits (without the validation part) are nearer to each other's official sizes than to their own."""
    assert described.counts is not None
    try:
        other = layout.read(described, opened.place, "test" if split == "train" else "train")
    except (BambooError, OSError):
        return False
    train, test = (opened, other) if split == "train" else (other, opened)
    rows: npt.NDArray[np.int64] | None = getattr(train, "validation_rows", None)
    num_held, official_held = (0, 0) if rows is None else (len(rows), described.validation or 0)
    num_train, num_test = len(train.labels) - num_held, len(test.labels)
    official_train, official_test = described.counts["train"] - official_held, described.counts["test"]
    straight = abs(num_train - official_train) + abs(num_test - official_test)
    crossed = abs(num_train - official_test) + abs(num_test - official_train)
    return crossed < straight


def _first(parts: list[str]) -> str:
    return ", ".join(parts[:_SHOWN]) + (f", … ({len(parts) - _SHOWN} more)" if len(parts) > _SHOWN else "")
