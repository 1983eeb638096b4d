"""Checks on the images themselves, beyond what their lists say: empty files, and training images that are test images too."""

import filecmp
from collections.abc import Container

import numpy as np
import numpy.typing as npt

from ...cli.errors import DataError
from ..sources import listing as shorten
from ..sources import printable
from ..stores import ImageStore
from .cifar import CifarBatches
from .listed import ListedImages

_ENOUGH = 5  # copies found before the search ends


def require_filled(images: ListedImages, what: str) -> None:
    """Raises DataError for files of no bytes, for links that lead nowhere, and for folders in the place of a file."""
    wrong = np.flatnonzero(images.sizes <= 0)
    if len(wrong):
        some = f"{len(wrong):,} of {len(images):,} images are empty, or no files"
        raise DataError(f"{what}: {some}: {shorten([printable(images.name(row)) for row in wrong.tolist()])}; extract the archive again")


def require_no_copies(train: ImageStore, test: ImageStore, validation_rows: npt.NDArray[np.int64] | None = None) -> None:
    """Raises DataError where test images, or those of the validation part, are copies of training images.

    Files of their own are copies when class, file name and all bytes are the same; CIFAR's archives, when they have the whole test split
    among their training rows; shards, when both folders hold the same data.
    """
    if isinstance(train, ListedImages) and isinstance(test, ListedImages):
        held = frozenset[int]() if validation_rows is None else frozenset(validation_rows.tolist())
        _refuse(_copies(train, range(len(train)), test, range(len(test))), "the test split")
        _refuse(_copies(train, frozenset(range(len(train))) - held, train, held) if held else [], "the validation part")
    elif isinstance(train, CifarBatches) and isinstance(test, CifarBatches):
        if train.holds(test):
            raise DataError(f"{test.name(0)}: this and all other test images are among the training images; extract the archive again")
    elif train.data_hash == test.data_hash:
        raise DataError(f"{test.name(0)}: this and all other test images are the training images")


def _copies(train: ListedImages, train_rows: Container[int], other: ListedImages, other_rows: Container[int]) -> list[tuple[str, str]]:
    """Returns the first pairs of files of the same class, name, size and bytes."""
    same: dict[tuple[int, str, int], list[int]] = {}
    for row, traits in enumerate(other.traits()):
        if row in other_rows:
            same.setdefault(traits, []).append(row)
    pairs = (
        (train.name(row), other.name(twin))
        for row, traits in enumerate(train.traits())
        if traits in same and row in train_rows
        for twin in same[traits]
    )
    found = []
    for pair in pairs:
        if filecmp.cmp(*pair, shallow=False):
            found.append(pair)
            if len(found) == _ENOUGH:
                break
    return found


def _refuse(pairs: list[tuple[str, str]], where: str) -> None:
    if pairs:
        named = shorten([f"{printable(second)} = {printable(first)}" for first, second in pairs])
        raise DataError(f"training images are in {where} too, byte for byte (first {len(pairs)} found): {named}")
