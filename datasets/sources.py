"""Where images to be packed come from: one record per image, and a reader that fetches its bytes in any process."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol

from ..cli.errors import UserError
from .class_list import ClassList, named_classes
from .manifest import ClassEntry
from .tars import IMAGE_EXTENSIONS

Format = Literal["auto", "folder", "archive", "list", "ml-images", "lmdb", "shards"]

MISSING = -1  # size_bytes of a listed file that is not there

_SUFFIXES = tuple(f".{extension}" for extension in IMAGE_EXTENSIONS)
_SHOWN = 5
_NO_FIELDS: Mapping[str, Any] = {}  # one for all: a pool may have millions of records


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One image to pack. `name` is its path as the source spells it, `position` the reader's own way to it.

    `captions` are lines of text, `fields` what else its JSON member says of it.
    """

    name: str
    labels: tuple[int, ...]
    confidences: tuple[float, ...] | None
    size_bytes: int
    position: int = 0
    captions: tuple[str, ...] = ()
    fields: Mapping[str, Any] = dataclasses.field(default_factory=lambda: _NO_FIELDS)


class Reader(Protocol):
    """Fetches image bytes; small, and picklable before its first read."""

    def prepare(self) -> None:
        """Makes ready what `read` needs; called once, before any process reads."""

    def read(self, record: Record) -> bytes:
        """Returns the encoded image; raises OSError (or DataError, for a damaged archive)."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A pool of images: records in the source's own order, classes, reader, and notes on what was left out."""

    records: Sequence[Record]
    classes: tuple[ClassEntry, ...]
    reader: Reader
    notes: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Encoded bytes of all images that are there."""
        return sum(max(record.size_bytes, 0) for record in self.records)

    def fingerprint(self) -> str:
        """Returns the hex SHA-256 of names, sizes, labels, captions, fields and classes: the same source, the same hash."""
        digest = hashlib.sha256()
        for record in self.records:
            row: list[Any] = [record.name, record.size_bytes, record.labels, record.confidences]
            if record.captions or record.fields:
                row += [record.captions, record.fields]
            digest.update(json.dumps(row, separators=(",", ":")).encode())
        digest.update(json.dumps([[entry.name, entry.parent] for entry in self.classes]).encode())
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True, slots=True)
class File:
    """A file of a tree of class folders: path relative to the tree's root."""

    path: str
    size_bytes: int
    position: int = 0


@dataclasses.dataclass(frozen=True)
class FolderReader:
    """Reads `root / record.name`."""

    root: Path

    def prepare(self) -> None:
        """Needs nothing."""

    def read(self, record: Record) -> bytes:
        """Returns the file's bytes."""
        return (self.root / record.name).read_bytes()


def folder_source(root: Path, classes: ClassList | None) -> Source:
    """Returns the images of a folder of class folders; links to folders are followed once."""
    files, folders = list[File](), list[str]()
    seen: set[tuple[int, int]] = set()
    for place, subfolders, names in os.walk(root, followlinks=True, onerror=_raise):
        status = Path(place).stat()
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        relative = PurePosixPath(place).relative_to(root.as_posix()).as_posix()
        folders.append(relative)
        for name in names:
            path = name if relative == "." else f"{relative}/{name}"
            files.append(File(path, _size(root / path) if is_image_name(path) else 0))
    return tree_source(files, folders, classes, FolderReader(root), str(root))


def tree_source(files: Iterable[File], folders: Iterable[str], classes: ClassList | None, reader: Reader, where: str) -> Source:
    """Returns the source made of a tree of class folders, sorted by path.

    The class of an image is its folder's path relative to the root; its parent class is the nearest folder above that holds
    images too. A folder with neither images nor folders inside is a class without samples; images directly in the root have
    no label. Hidden files and folders, `__MACOSX` and files that no image is called like are left out.

    Raises:
        UserError: when there is no image, or a folder is not in `classes`.
    """
    visible = [file for file in files if not is_hidden(file.path)]
    images = sorted((file for file in visible if is_image_name(file.path)), key=lambda file: file.path)
    if not images:
        tars = sum(file.path.endswith(".tar") for file in visible)
        hint = f"; its {tars} tars may be shards: bamboo shards index {where}" if tars else ""
        raise UserError(f"{where}: no images; a folder of class folders with {', '.join(_SUFFIXES[:4])}, … files is expected{hint}")
    source = labelled_source(images, (folder for folder in folders if not is_hidden(folder)), classes, reader, where)
    left_out = len(visible) - len(images)
    notes = (f"{left_out:,} files are not called like images and are left out",) if left_out else ()
    return dataclasses.replace(source, notes=(*notes, *source.notes))


def labelled_source(images: Sequence[File], folders: Iterable[str], classes: ClassList | None, reader: Reader, where: str) -> Source:
    """Returns the source of these images in their order, labelled by their folders as `tree_source` says."""
    names = _class_names((_parent(file.path) for file in images), folders)
    if classes is None:
        ids = {name: i for i, name in enumerate(names)}
        listed = named_classes([printable(name) for name in names], [_nearest_above(name, ids) for name in names], where)
    else:
        ids, listed = {name: classes.find(name, where) for name in names}, classes
    labels = {name: (i,) for name, i in ids.items()}
    records = [Record(file.path, labels.get(_parent(file.path), ()), None, file.size_bytes, file.position) for file in images]
    return Source(records, listed.entries, reader, tuple(_tree_notes(records, names)))


def class_ids(entries: Sequence[ClassEntry], classes: ClassList | None, where: str) -> list[int]:
    """Returns the new id of each class of a source that has classes of its own: that of its name in `classes`, where they are given.

    Raises:
        UserError: for a class that `classes` does not have.
    """
    return [i if classes is None else classes.find(entry.name, where) for i, entry in enumerate(entries)]


def is_image_name(path: str) -> bool:
    """Whether a file is called like an image."""
    return path.lower().endswith(_SUFFIXES)


def is_hidden(path: str) -> bool:
    """Whether a file or a folder above it is hidden, or macOS' archive litter."""
    return any((part.startswith(".") and part != ".") or part == "__MACOSX" for part in path.split("/"))


def printable(name: str) -> str:
    """Returns a file name as one line of valid text, whatever bytes the file system gave."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def listing(names: Sequence[str]) -> str:
    """Returns the first names, and how many more there are."""
    shown = ", ".join(printable(name) for name in names[:_SHOWN])
    return shown + (f", … ({len(names) - _SHOWN:,} more)" if len(names) > _SHOWN else "")


def _class_names(with_images: Iterable[str], folders: Iterable[str]) -> list[str]:
    names = set(with_images)
    others = set(folders) - {"."}
    inner = {_parent(name) for name in names | others}
    return sorted((names | {name for name in others if name not in inner}) - {""})


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _nearest_above(name: str, ids: dict[str, int]) -> int | None:
    above = _parent(name)
    while above and above not in ids:
        above = _parent(above)
    return ids.get(above)


def _tree_notes(records: Sequence[Record], names: Sequence[str]) -> Iterator[str]:
    unlabelled = sum(not record.labels for record in records)
    tops = {name.split("/")[0] for name in names}
    if unlabelled:
        yield f"{unlabelled:,} images lie in no class folder and have no label"
    if len(tops) == 1 and len(names) > 1 and not unlabelled:
        top = tops.pop()
        yield f"every class lies under {printable(top)!r}; --subdir {printable(top)} takes that out of the class names"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # a dangling link
        return MISSING


def _raise(error: OSError) -> None:
    raise error
