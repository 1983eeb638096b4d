"""`dataset.json`: what a shard folder holds and how it was made."""

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

from ..cli.errors import DataError, UserError
from .atomic import sha256_json, write_json

FILE_NAME = "dataset.json"
FORMAT = "bamboo-shards"
VERSION = 1

_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_BYTES = 2**63 - 1


@dataclasses.dataclass(frozen=True)
class ClassEntry:
    """One class: its id is its place in the list; `parent` is the id of the class above it, None at a root."""

    name: str
    parent: int | None = None


@dataclasses.dataclass(frozen=True)
class ShardEntry:
    """One shard file: name inside the folder, bytes, SHA-256 and sample count."""

    name: str
    size_bytes: int
    sha256: str
    num_samples: int


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The content of `dataset.json`; `made_by` records command, options, versions and counts of skipped samples.

    It holds neither date nor machine: the same pack makes the same bytes.
    """

    classes: tuple[ClassEntry, ...]
    shards: tuple[ShardEntry, ...]
    index_sha256: str
    made_by: dict[str, Any]

    @property
    def num_samples(self) -> int:
        """Samples in all shards."""
        return sum(shard.num_samples for shard in self.shards)

    @property
    def data_hash(self) -> str:
        """Hex SHA-256 over the shards' hashes, the index and the class list: equal exactly when the data is."""
        classes = [[entry.name, entry.parent] for entry in self.classes]
        return sha256_json([[shard.sha256 for shard in self.shards], self.index_sha256, classes])

    def write(self, folder: Path) -> None:
        """Writes `dataset.json` into `folder`, atomically."""
        tree = {
            "format": FORMAT,
            "version": VERSION,
            "num_samples": self.num_samples,
            "num_classes": len(self.classes),
            "data_hash": self.data_hash,
            "index_sha256": self.index_sha256,
            "shards": [dataclasses.asdict(shard) for shard in self.shards],
            "classes": [{"id": i, **dataclasses.asdict(entry)} for i, entry in enumerate(self.classes)],
            "made_by": self.made_by,
        }
        write_json(folder / FILE_NAME, tree)


def read_manifest(folder: Path) -> Manifest:
    """Returns the manifest of a shard folder.

    Raises:
        UserError: when `folder` is no shard folder.
        DataError: when its `dataset.json` is damaged or of another version.
    """
    path = folder / FILE_NAME
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if not path.exists():
        make = "bamboo shards pack SRC --out DIR, or bamboo shards index DIR"
        raise UserError(f"{folder}: not a shard folder (no {FILE_NAME}); make one with: {make}")
    return parse_manifest(path.read_bytes(), str(path))


def parse_manifest(data: bytes, path: str) -> Manifest:
    """Returns the manifest that the bytes of a `dataset.json` hold; `path` names it in errors.

    Raises:
        DataError: when they are damaged, of another version, or name files that are not plain names inside the folder.
    """
    try:
        tree = json.loads(data)
        if (tree["format"], tree["version"]) != (FORMAT, VERSION):
            raise DataError(f"{path}: format {tree['format']} version {tree['version']}; this Bamboo reads {FORMAT} version {VERSION}")
        manifest = Manifest(
            classes=tuple(ClassEntry(entry["name"], entry["parent"]) for entry in tree["classes"]),
            shards=tuple(ShardEntry(**entry) for entry in tree["shards"]),
            index_sha256=tree["index_sha256"],
            made_by=tree["made_by"],
        )
        _check(manifest)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: damaged ({type(error).__name__}: {error})") from None
    if manifest.num_samples != tree["num_samples"]:
        raise DataError(f"{path}: damaged (num_samples is {tree['num_samples']}, its shards say {manifest.num_samples})")
    return manifest


def _check(manifest: Manifest) -> None:
    """Raises ValueError where a value is of another type or range than the fields say: the file may be a stranger's."""
    num_classes = len(manifest.classes)
    for ordinal, entry in enumerate(manifest.classes):
        if not isinstance(entry.name, str):
            raise ValueError(f"class {ordinal}: name {entry.name!r}: must be a string")
        if entry.parent is not None and not _is_count(entry.parent, num_classes - 1):
            raise ValueError(f"class {ordinal}: parent {entry.parent!r}: must be null or a class id in [0, {num_classes})")
    for number, shard in enumerate(manifest.shards):
        if not _is_plain_name(shard.name):
            raise ValueError(f"shard {number}: name {shard.name!r}: must be a file name without / and \\ that does not begin with a dot")
        if not (_is_count(shard.size_bytes) and _is_count(shard.num_samples)):
            raise ValueError(f"{shard.name}: size_bytes {shard.size_bytes!r}, num_samples {shard.num_samples!r}: must be integers ≥ 0")
        if not _is_sha256(shard.sha256):
            raise ValueError(f"{shard.name}: sha256 {shard.sha256!r}: must be 64 hex digits")
    if not _is_sha256(manifest.index_sha256):
        raise ValueError(f"index_sha256 {manifest.index_sha256!r}: must be 64 hex digits")
    if not isinstance(manifest.made_by, dict):
        raise ValueError("made_by must be an object")


def _is_count(value: object, most: int = _MOST_BYTES) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and bool(_SHA256.fullmatch(value))


def _is_plain_name(value: object) -> bool:
    """Whether a value names a file inside a folder, and one that this file system can have; surrogates stand for bytes of no text."""
    if not isinstance(value, str) or not value or value.startswith(".") or any(mark in value for mark in "/\\\0"):
        return False
    return bool(os.fsencode(value))  # a ValueError where there is no such name
