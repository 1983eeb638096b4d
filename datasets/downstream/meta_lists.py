"""The lists of the released benchmark: `train_meta.list` and `test_meta.list`, a line `relative/path label` per image.

The label is what follows the last white space, so paths may hold blanks; it counts from 0. Paths are relative to the list's folder.
`val_meta.list`, where it is there, names the official validation part: its images may stand in `train_meta.list` too, or only there.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...cli.errors import DataError
from .facts import DownstreamSet, SplitName
from .listing import Listing, from_zero, inside, joined, read_lines

MARKS = ("train_meta.list", "test_meta.list")

_LABEL_DIGITS = 9


def read_meta_list(described: DownstreamSet, folder: Path, split: SplitName) -> Listing:
    """Returns one split of a folder with lists.

    Raises:
        DataError: for a missing, empty or non-UTF-8 list, a line of another form, a path that leaves the folder, labels that count
            from 1 or are out of range, and a training list of test images or the other way round.
    """
    listing = _read(described, folder, folder / f"{split}_meta.list")
    _refuse_swapped(listing, split)
    validation = folder / "val_meta.list"
    return _with_validation(listing, _read(described, folder, validation)) if split == "train" and validation.exists() else listing


def _read(described: DownstreamSet, folder: Path, path: Path) -> Listing:
    files, labels = list[str](), list[int]()
    for number, line in read_lines(path):
        file, label = _parts(line, f"{path}: line {number}")
        files.append(file)
        labels.append(label)
    num_classes = described.num_classes or max(labels) + 1
    names = described.class_names or tuple(str(label) for label in range(num_classes))
    ids = from_zero(np.array(labels, np.int64), num_classes, first=0, source=str(path))
    return Listing(folder=folder, files=files, labels=ids, class_names=names, source=str(path))


def _parts(line: str, where: str) -> tuple[str, int]:
    words = line.rsplit(maxsplit=1)
    file, label = words if len(words) == 2 else ("", "")
    if not file or not label.removeprefix("-").isdecimal() or len(label) > _LABEL_DIGITS:
        raise DataError(f"{where}: {line!r} is not `relative/path label`")
    return inside(file, where), int(label)


def _refuse_swapped(listing: Listing, split: SplitName) -> None:
    other = "test" if split == "train" else "train"
    if all(file.startswith(f"{other}/") for file in listing.files):
        raise DataError(f"{listing.source}: all its images lie in {other}/: train and test look swapped")


def _with_validation(train: Listing, validation: Listing) -> Listing:
    rows = {file: row for row, file in enumerate(train.files)}
    held = [rows[file] for file in validation.files if file in rows]
    if not held:
        return joined(train, validation)
    if len(held) < len(validation.files):
        some = f"{len(held):,} of its {len(validation.files):,} images stand in {train.source} too"
        raise DataError(f"{validation.source}: {some}; all or none must")
    _require_same_labels(train, validation, held)
    return dataclasses.replace(train, validation_rows=np.sort(np.array(held, np.int64)))


def _require_same_labels(train: Listing, validation: Listing, held: Sequence[int]) -> None:
    differing = np.flatnonzero(train.labels[list(held)] != validation.labels)
    if len(differing):
        raise DataError(f"{validation.source}: {validation.files[int(differing[0])]!r} has another label than in {train.source}")
