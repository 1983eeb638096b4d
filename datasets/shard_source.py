"""Shard folders as a source: to pack them anew, at another size or into an LMDB, with all that their samples carry."""

import bisect
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..cli.errors import DataError, UserError
from .class_list import ClassList
from .members import metadata_of
from .nesting import require_shallow
from .shards import Shards
from .sources import Reader, Record, Source, class_ids, printable
from .tars import TarSample, read_extent, scan

NAMING_COMMANDS = ("bamboo shards pack", "bamboo grow")
"""Commands of ours, whose shards hold each sample's name in the field "source"."""

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


class JoinedReader:
    """Reads from several sources, in whose records one after another a position counts."""

    def __init__(self, readers: Sequence[Reader], firsts: Sequence[int]) -> None:
        self._readers, self._firsts = readers, firsts

    def prepare(self) -> None:
        """Prepares each."""
        for reader in self._readers:
            reader.prepare()

    def read(self, record: Record) -> bytes:
        """Returns the encoded image; errors as the reader of its source."""
        number = bisect.bisect_right(self._firsts, record.position) - 1
        return self._readers[number].read(dataclasses.replace(record, position=record.position - self._firsts[number]))


def joined_source(folders: Sequence[Path]) -> Source:
    """Returns the samples of shard folders of one class list, one folder after another; `position` numbers them through all.

    Names are those of `shard_source`; where two folders share one, the folder's number, from 0, stands before every name: `1/cat/7.jpg`.

    Raises:
        UserError: when one is no shard folder, or their classes differ.
        DataError: when the parts of one do not belong together.
    """
    sources = [shard_source(folder, None) for folder in folders]
    other = next((folder for folder, source in zip(folders, sources, strict=True) if source.classes != sources[0].classes), None)
    if other is not None:
        raise UserError(f"{other}: its classes are not those of {folders[0]}, or their order differs; pack both with one --classes")
    *firsts, _ = itertools.accumulate((len(source.records) for source in sources), initial=0)
    names = [{record.name for record in source.records} for source in sources]
    is_shared = len(set().union(*names)) < sum(len(found) for found in names)
    records = [
        dataclasses.replace(record, name=f"{number}/{record.name}" if is_shared else record.name, position=first + record.position)
        for number, (first, source) in enumerate(zip(firsts, sources, strict=True))
        for record in source.records
    ]
    return Source(records, sources[0].classes, JoinedReader([source.reader for source in sources], firsts))


def _records(shards: Shards, ids: list[int]) -> Iterator[Record]:
    ours = shards.manifest.made_by.get("command") in NAMING_COMMANDS
    for sample, found, texts in walk_texts(shards, ("txt", "json")):
        yield _record(shards, sample, found, texts, ids, ours)


def walk_texts(shards: Shards, wanted: Sequence[str]) -> Iterator[tuple[int, TarSample, dict[str, bytes]]]:
    """Yields (number, members, those of the members `wanted` that it has) of every sample of a local folder, each tar read once through.

    Raises:
        DataError: when a tar is damaged or has too large a text, or samples are not where the index says.
    """
    index, sample = shards.index, 0
    for number, entry in enumerate(shards.manifest.shards):
        path = Path(shards.folder) / entry.name
        stop = int(np.searchsorted(index.shard, number, side="right"))
        with path.open("rb") as file:
            for found in scan(path):
                if sample < stop and found.image is not None and found.image.offset == index.offset[sample]:
                    yield sample, found, {name: read_extent(file, found.members[name]) for name in _texts(found, wanted, path)}
                    sample += 1
        if sample != stop:
            lost = f"{stop - sample} of its samples are not where the index says"
            raise DataError(f"{path}: {lost}; see: bamboo shards verify {shards.folder}")


def _texts(found: TarSample, wanted: Sequence[str], path: Path) -> list[str]:
    names = [name for name in wanted if name in found.members]
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
