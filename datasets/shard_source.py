"""A shard folder as a source: to pack it anew, at another size or into an LMDB, with all that its samples carry."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..cli.errors import DataError
from .class_list import ClassList
from .members import metadata_of
from .nesting import require_shallow
from .shards import Shards
from .sources import Record, Source, class_ids, printable
from .tars import TarSample, read_extent, scan

_OWN_FIELDS = ("labels", "confidences")  # written again from the record
_NAME_FIELD = "source"
_TEXT_BYTES = 16 << 20  # of a caption or of metadata: what may be read into memory


class ShardReader:
    """Reads images of a shard folder by sample number; the folder is opened once per process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shards: Shards | None = None

    def prepare(self) -> None:
        """Needs nothing."""

    def read(self, record: Record) -> bytes:
        """Returns the encoded image; raises DataError for a truncated shard."""
        if self._shards is None:
            self._shards = Shards.open(self._folder)
        return self._shards.read(record.position)

    def __getstate__(self) -> dict[str, object]:
        return {"_folder": self._folder, "_shards": None}


def shard_source(folder: Path, classes: ClassList | None) -> Source:
    """Returns the samples of a shard folder in its order: labels from its index, captions and fields from its tars.

    A name is what `bamboo shards pack` recorded, else key and extension; where those repeat, the shard's name stands before them.

    Raises:
        UserError: when `folder` is none, or has a class that is not in `classes`.
        DataError: when its parts do not belong together.
    """
    shards = Shards.open(folder)
    ids = class_ids(shards.manifest.classes, classes, str(folder))
    records = list(_records(shards, ids))
    if len({record.name for record in records}) < len(records):
        stems = [entry.name.removesuffix(".tar") for entry in shards.manifest.shards]
        records = [dataclasses.replace(record, name=f"{stems[shards.index.shard[record.position]]}/{record.name}") for record in records]
    return Source(records, shards.manifest.classes if classes is None else classes.entries, ShardReader(folder))


def _records(shards: Shards, ids: list[int]) -> Iterator[Record]:
    index, sample = shards.index, 0
    ours = shards.manifest.made_by.get("command") == "bamboo shards pack"
    for number, entry in enumerate(shards.manifest.shards):
        path = Path(shards.folder) / entry.name
        stop = int(np.searchsorted(index.shard, number, side="right"))
        with path.open("rb") as file:
            for found in scan(path):
                if sample < stop and found.image is not None and found.image.offset == index.offset[sample]:
                    texts = {name: read_extent(file, found.members[name]) for name in _texts(found, path)}
                    yield _record(shards, sample, found, texts, ids, ours)
                    sample += 1
        if sample != stop:
            lost = f"{stop - sample} of its samples are not where the index says"
            raise DataError(f"{path}: {lost}; see: bamboo shards verify {shards.folder}")


def _texts(found: TarSample, path: Path) -> list[str]:
    names = [name for name in ("txt", "json") if name in found.members]
    for name in names:
        size = found.members[name].size
        if size > _TEXT_BYTES:
            what = f"{path}: {printable(found.key)}.{name}: {size:,} bytes of text; allowed: up to {_TEXT_BYTES:,}"
            raise DataError(f"{what}; take it out of the tar, and index it anew: bamboo shards index")
    return names


def _record(shards: Shards, sample: int, found: TarSample, texts: Mapping[str, bytes], ids: list[int], ours: bool) -> Record:
    """Returns the record of a sample; `ours`: its field "source" is its name."""
    tree = _tree(texts, f"{shards.folder}/{shards.shard_of(sample)[1]}: {printable(found.key)}")
    extension = next(name for name, extent in found.members.items() if extent == found.image)
    source = tree.get(_NAME_FIELD) if ours else None
    dropped = (*_OWN_FIELDS, _NAME_FIELD) if isinstance(source, str) else _OWN_FIELDS
    return Record(
        name=source if isinstance(source, str) else f"{found.key}.{extension}",
        labels=tuple(ids[label] for label in shards.index.labels_of(sample).tolist()),
        confidences=_confidences(shards, sample, tree),
        size_bytes=int(shards.index.size[sample]),
        position=sample,
        captions=tuple(texts["txt"].decode("utf-8", "replace").splitlines()) if "txt" in texts else (),
        fields={name: value for name, value in tree.items() if name not in dropped},
    )


def _tree(texts: Mapping[str, bytes], where: str) -> dict[str, Any]:
    """Returns what the JSON member says, which is shallow enough to be written again."""
    try:
        tree = metadata_of(texts, where)
    except RecursionError:
        raise DataError(f"{where}: its .json member is nested too deep to be read; make it flat, or take it out") from None
    require_shallow(tree, where)
    return tree


def _confidences(shards: Shards, sample: int, tree: Mapping[str, Any]) -> tuple[float, ...] | None:
    """Returns them as the JSON member has them, which are those of the index at full precision."""
    rounded = shards.index.confidences_of(sample)
    if bool((rounded == 1).all()):
        return None
    exact = tree.get("confidences")
    if isinstance(exact, list) and all(_is_confidence(value) for value in exact) and np.array_equal(np.array(exact, np.float16), rounded):
        return tuple(exact)
    return tuple(rounded.tolist())


def _is_confidence(value: object) -> bool:
    """Whether a value of somebody's JSON is a number in [0, 1]."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
