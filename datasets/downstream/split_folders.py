"""Splits that are folders: `train/` and `test/` (or `val/`) of class folders, or of shards."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...cli.errors import DataError, UserError
from ..manifest import FILE_NAME as MANIFEST_NAME
from ..shards import Shards
from ..stores import ImageStore
from .facts import DownstreamSet, SplitName
from .listed import folders_in, images_below
from .listing import Listing, joined

CLASS_FOLDER_MARKS = ("train/",)
SHARD_MARKS = tuple(f"{name}/{MANIFEST_NAME}" for name in ("train", "test", "val"))


def read_class_folders(described: DownstreamSet, folder: Path, split: SplitName) -> Listing:
    """Returns a split of `train/CLASS/…` and `test/CLASS/…`: classes and files in the order of their names, class ids those of train.

    Without `test/`, `val/` is the test split. With both, `val/` is the validation part of the training split.

    Raises:
        UserError: when there is no test folder, or the folder holds tars instead of class folders.
        DataError: for a folder without classes, a class folder without an image, and a class that train does not have.
    """
    classes = _classes(folder / "train")
    if split == "test":
        return _class_folders(_test_folder(folder, described), classes)
    train = _class_folders(folder / "train", classes)
    if described.name == "imagenet" or not ((folder / "val").is_dir() and (folder / "test").is_dir()):
        return train
    parts = [_below(folder, train), _below(folder, _class_folders(folder / "val", classes))]
    whole = joined(*parts)
    official = described.counts is None or described.validation is not None
    return whole if official else dataclasses.replace(whole, validation_rows=None)


def read_shards(described: DownstreamSet, folder: Path, split: SplitName) -> ImageStore:
    """Returns a split that is a shard folder: `train`, and `test` or `val`.

    Raises:
        UserError: when the folder has no index; names the command that makes it.
        DataError: when its parts do not belong together, or a sample has no label.
    """
    place = folder / "train" if split == "train" else _test_folder(folder, described)
    store = Shards.open(place)
    unlabelled = int((store.labels < 0).sum())
    if unlabelled:
        raise DataError(f"{place}: {unlabelled:,} of {len(store):,} samples have no label; a probe needs one for each")
    return store


def _test_folder(folder: Path, described: DownstreamSet) -> Path:
    names = ("val",) if described.name == "imagenet" else ("test", "val")  # ImageNet's own test/ has no labels
    found = next((folder / name for name in names if (folder / name).is_dir()), None)
    if found is None:
        raise UserError(f"data_root: {folder / 'train'} is there, but no {' or '.join(names)} beside it; {described.recipe}")
    return found


def _classes(folder: Path) -> list[str]:
    """Returns the names of the class folders in a split's folder."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; the classes are those of the training split")
    names = folders_in(folder)
    if names:
        return names
    tars = sum(1 for _ in folder.glob("*.tar"))
    if tars:
        raise UserError(f"{folder}: {tars} tars without an index; make one with: bamboo shards index {folder}")
    raise DataError(f"{folder}: holds no class folders; images must lie in {folder.name}/CLASS/")


def _class_folders(folder: Path, classes: Sequence[str]) -> Listing:
    names = _classes(folder)
    unknown = sorted(set(names) - set(classes))
    if unknown:
        raise DataError(f"{folder}: classes {unknown} are not among those of the training set")
    found = {name: images_below(folder / name) for name in names}
    empty = [name for name, files in found.items() if not files]
    if empty:
        raise DataError(f"{folder}: class folders without an image: {', '.join(empty)}; remove them or add their images")
    sizes = [len(found.get(name, [])) for name in classes]
    return Listing(
        folder=folder,
        files=[f"{name}/{file}" for name in classes for file in found.get(name, [])],
        labels=np.repeat(np.arange(len(classes)), sizes).astype(np.int64),
        class_names=tuple(classes),
        source=str(folder),
    )


def _below(folder: Path, listing: Listing) -> Listing:
    """Returns the listing with its paths relative to a folder above."""
    prefix = listing.folder.relative_to(folder).as_posix()
    return dataclasses.replace(listing, folder=folder, files=[f"{prefix}/{file}" for file in listing.files])
