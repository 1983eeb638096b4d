"""Splits that are LMDBs on a local disk: `train.lmdb` and `test.lmdb` (or `val.lmdb`), folders or files, ours or those of others."""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ...cli.errors import DataError, UserError
from ..atomic import sha256_json
from ..class_list import ClassList, named_classes
from ..images import decode_rgb
from ..lmdb_files import LmdbFile, is_lmdb, key_of
from ..lmdb_layout import read_lmdb_manifest
from ..lmdb_source import lmdb_source
from ..stores import ImageStore
from .facts import DownstreamSet, SplitName
from .listed import LabelledRows, PathBlock

LMDB_MARKS = tuple(f"{name}.lmdb{slash}" for name in ("train", "test", "val") for slash in ("/", ""))

_HASHED_BYTES = 256 << 20


class LmdbImages(LabelledRows):
    """Images of an LMDB by number, in the order of the keys; each process that loads opens the LMDB for itself.

    `data_hash` is the one that Bamboo wrote into its LMDBs. Of others it covers keys, labels, classes, and the images' bytes where they
    are at most 256 MiB together, else their sizes.
    """

    def __init__(
        self, file: LmdbFile, names: Sequence[str], sizes: Sequence[int], labels: npt.NDArray[np.int64], classes: Sequence[str]
    ) -> None:
        super().__init__(labels, classes)
        self._file, self._names, self._sizes = file, PathBlock(names), np.array(sizes, np.int64)

    @functools.cached_property
    def data_hash(self) -> str:
        """Identity of the data, see the class."""
        manifest = read_lmdb_manifest(self._file)
        if manifest is not None:
            return sha256_json([manifest.data_hash, self._class_names])
        names = list(self._names)
        whole = int(self._sizes.sum()) <= _HASHED_BYTES
        contents = [hashlib.sha256(self._read(sample)).hexdigest() for sample in range(len(self))] if whole else self._sizes.tolist()
        return sha256_json([names, contents, self._labels.tolist(), self._class_names])

    def load(self, sample: int) -> torch.Tensor:
        """Returns uint8[3, H, W]; raises UnreadableImageError, or DataError for a key that is gone."""
        return decode_rgb(self._read(sample))

    def name(self, sample: int) -> str:
        """Returns `LMDB:key` of a sample."""
        return f"{self._file.path}:{self._names[sample]}"

    def _read(self, sample: int) -> bytearray:
        data = self._file.read(key_of(self._names[sample]))
        if data is None:
            raise DataError(f"{self.name(sample)}: no such key; the LMDB was changed after it was opened")
        return data


def read_lmdb(described: DownstreamSet, folder: Path, split: SplitName) -> ImageStore:
    """Returns a split that is an LMDB: `train.lmdb`, and `test.lmdb` or `val.lmdb`; class ids are those of train.

    Raises:
        UserError: when one is missing, holds no images, or has a class that train does not have.
        DataError: when one is damaged, or an image has no label.
    """
    train = folder / "train.lmdb"
    if not train.exists():
        raise UserError(f"data_root: no {train}; the classes are those of the training split")
    if split == "train":
        return open_lmdb_images(train, None)
    names = ("val",) if described.name == "imagenet" else ("test", "val")
    place = next((path for name in names if (path := folder / f"{name}.lmdb").exists()), None)
    if place is None:
        raise UserError(
            f"data_root: {train} is there, but no {' or '.join(f'{name}.lmdb' for name in names)} beside it; {described.recipe}"
        )
    listed = lmdb_source(train, "", None, None).classes
    return open_lmdb_images(place, named_classes([entry.name for entry in listed], [None] * len(listed), str(train)))


def open_lmdb_images(path: Path, classes: ClassList | None) -> LmdbImages:
    """Returns the labelled images of an LMDB, with the class ids of `classes`, or with its own.

    Raises:
        UserError, DataError: as `read_lmdb`.
    """
    if not is_lmdb(path):
        raise DataError(f"{path}: no LMDB; make it with: bamboo shards pack SRC --to lmdb --out {path}")
    source = lmdb_source(path, "", None, classes)
    unlabelled = sum(not record.labels for record in source.records)
    if unlabelled:
        raise DataError(f"{path}: {unlabelled:,} of {len(source.records):,} images have no label; a probe needs one for each")
    names, sizes = [record.name for record in source.records], [record.size_bytes for record in source.records]
    labels = np.array([record.labels[0] for record in source.records], np.int64)
    return LmdbImages(LmdbFile(path), names, sizes, labels, [entry.name for entry in source.classes])
