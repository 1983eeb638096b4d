"""Sets without official splits, or whose official split files are not at hand: splits drawn by a keyed hash of file names.

Of each class the files are ordered by SHA-256 of `bamboo split, seed 0:SET:PATH`; the first are for training, the next (or all the
rest) for the test. The draw depends on names alone: not on the platform, the order of a folder, or a random number generator.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ...cli.errors import DataError
from .facts import DownstreamSet, SplitName
from .listed import folders_in, images_below
from .listing import Listing

SEED = 0


def draw(files: Sequence[str], key: str, num_train: int, num_test: int | None) -> dict[SplitName, list[str]]:
    """Returns the files of each split, sorted; `num_test=None` takes all that are not for training."""

    def place(file: str) -> tuple[bytes, str]:
        return hashlib.sha256(os.fsencode(f"bamboo split, seed {SEED}:{key}:{file}")).digest(), file

    ordered = sorted(files, key=place)
    last = None if num_test is None else num_train + num_test
    return {"train": sorted(ordered[:num_train]), "test": sorted(ordered[num_train:last])}


def read_caltech(described: DownstreamSet, folder: Path, split: SplitName) -> Listing:
    """Returns a split of Caltech-101 with its background class: 30 images per class for training, the rest for the test.

    Raises:
        DataError: when a class has too few images for the draw.
    """
    classes = {name: [f"{name}/{file}" for file in images_below(folder / name)] for name in folders_in(folder)}
    drawn = f"{described.class_counts['train']} images per class drawn for training, the rest for the test, seed {SEED}"
    return _drawn(described, folder, classes, split, (f"background class included; {drawn}",))


def read_sun_seeded(described: DownstreamSet, folder: Path, split: SplitName) -> Listing:
    """Returns a split of all images of SUN397: 50 per class for training and 50 others for the test.

    Raises:
        DataError: when a class has too few images for the draw.
    """
    classes = dict[str, list[str]]()
    for file in images_below(folder):
        classes.setdefault(file.rpartition("/")[0], []).append(file)
    counts = described.class_counts
    note = f"not an official partition: {counts['train']} + {counts['test']} images per class drawn, seed {SEED}"
    return _drawn(described, folder, dict(sorted(classes.items())), split, (note,))


def _drawn(
    described: DownstreamSet, folder: Path, classes: Mapping[str, Sequence[str]], split: SplitName, notes: tuple[str, ...]
) -> Listing:
    num_train, num_test = described.class_counts["train"], described.class_counts.get("test")
    needed = num_train + (1 if num_test is None else num_test)
    few = [f"{name} has {len(files)}" for name, files in classes.items() if len(files) < needed]
    if few:
        need = f"the draw needs at least {needed} images of every class, but {', '.join(few[:5])}"
        raise DataError(f"{folder}: {need}; extract the archive again")
    parts = [draw(files, described.name, num_train, num_test)[split] for files in classes.values()]
    labels = np.repeat(np.arange(len(parts)), [len(part) for part in parts]).astype(np.int64)
    files = [file for part in parts for file in part]
    return Listing(folder=folder, files=files, labels=labels, class_names=tuple(classes), source=str(folder), notes=notes)
