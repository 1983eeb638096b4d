"""A split as its source lists it, and the checks that every list goes through before an image is opened."""

import dataclasses
import os
import posixpath
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...cli.errors import DataError
from ..sources import listing as shorten


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listing:
    """Files and class ids of one split, in the order of their source."""

    folder: Path
    files: Sequence[str]
    """Paths relative to `folder`, of normal form."""

    labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    source: str
    """The files or folders that say so, for messages."""

    validation_rows: npt.NDArray[np.int64] | None = None
    """int64[V] numbers of the rows that are the official validation part of a training split."""

    notes: tuple[str, ...] = ()


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Returns (line number, stripped text) of each line that is not blank.

    Raises:
        DataError: when the file is missing, not UTF-8 (names the line) or has no line.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: missing; extract the archive again") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}: line {line}: not UTF-8; convert the file, and the file names with it") from None
    lines = [(number, stripped) for number, line in enumerate(text.split("\n"), 1) if (stripped := line.strip())]
    if not lines:
        raise DataError(f"{path}: empty: it lists no image")
    return lines


def inside(file: str, where: str) -> str:
    """Returns a listed path in normal form.

    Raises:
        DataError: for an absolute path, one that leaves the folder, and one that no file system takes; `where` begins the message.
    """
    plain = "./" not in file and "//" not in file and not file.endswith(("/", ".")) and file  # of a million lines, nearly all
    normal = file if plain else posixpath.normpath(file)
    if normal.startswith(("/", "../")) or normal in (".", "..") or "\0" in normal:
        raise DataError(f"{where}: {file!r} leads out of the set's folder; paths must be relative and stay inside it")
    return normal


def from_zero(labels: npt.NDArray[np.int64], num_classes: int, *, first: int, source: str) -> npt.NDArray[np.int64]:
    """Returns class ids that count from 0, of labels that must count from `first` (0 or 1).

    Raises:
        DataError: for no labels, and for a label outside `first` to `first + num_classes - 1`; says so where they count from the other.
    """
    if not len(labels):
        raise DataError(f"{source}: lists no image")
    low, high, last = int(labels.min()), int(labels.max()), first + num_classes - 1
    if first <= low and high <= last:
        return labels - first
    if first == 0 and low >= 1 and high == num_classes:
        raise DataError(f"{source}: labels {low} to {high} for {num_classes} classes: they count from 1, not from 0; subtract 1")
    if first == 1 and low == 0 and high < num_classes:
        raise DataError(f"{source}: labels {low} to {high} for {num_classes} classes: they count from 0, the official ones from 1")
    row = int(np.flatnonzero((labels < first) | (labels > last))[0])
    allowed = f"{num_classes} classes are labelled {first} to {last}"
    raise DataError(f"{source}: label {labels[row]} (entry {row + 1}) is out of range; {allowed}")


def joined(train: Listing, validation: Listing) -> Listing:
    """Returns an official training part and the validation part after it as one training split."""
    start = len(train.files)
    return dataclasses.replace(
        train,
        files=[*train.files, *validation.files],
        labels=np.concatenate([train.labels, validation.labels]),
        source=f"{train.source} and {validation.source}",
        validation_rows=np.arange(start, start + len(validation.files)),
        notes=(*train.notes, f"training and validation parts together ({start:,} + {len(validation.files):,})"),
    )


def require_whole(listing: Listing) -> None:
    """Raises DataError unless every file is listed once and is there; folders are read once each, no file is touched."""
    if not len(listing.files):
        raise DataError(f"{listing.source}: lists no image")
    if len(set(listing.files)) < len(listing.files):
        raise DataError(f"{listing.source}: {_first_repeated(listing.files)}; remove the duplicated line")
    missing = _missing(listing.folder, listing.files)
    if missing:
        some = f"{len(missing):,} of {len(listing.files):,} listed files are missing below {listing.folder}"
        raise DataError(f"{listing.source}: {some}: {shorten(missing)}")


def require_disjoint(train: Listing, test: Listing) -> None:
    """Raises DataError when a file is in both splits."""
    train_files = {f"{train.folder}/{file}" for file in train.files}
    shared = [file for file in test.files if f"{test.folder}/{file}" in train_files]
    if shared:
        raise DataError(f"{test.source}: {len(shared):,} files are in train and in test ({train.source}) too: {shorten(shared)}")


def _first_repeated(files: Sequence[str]) -> str:
    seen = dict[str, int]()
    for number, file in enumerate(files, 1):
        if file in seen:
            return f"{file!r} is listed twice (entries {seen[file]} and {number})"
        seen[file] = number
    raise AssertionError("no file is listed twice")


def _missing(folder: Path, files: Sequence[str]) -> list[str]:
    there: dict[str, frozenset[str]] = {}
    missing = []
    for file in files:
        parent, _, name = file.rpartition("/")
        if parent not in there:
            there[parent] = _names_in(folder / parent)
        if name not in there[parent]:
            missing.append(file)
    return missing


def _names_in(folder: Path) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))  # noqa: PTH208 (names are all that is needed, for up to a million files)
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
