"""`dataset.json`: what a shard folder holds and how it was made."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from ..cli.errors import DataError, UserError
from .atomic import sha256_json, write_json

FILE_NAME = "dataset.json"
FORMAT = "bamboo-shards"
VERSION = 1


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
        DataError: when they are damaged or of another version.
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
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({type(error).__name__}: {error})") from None
    if manifest.num_samples != tree["num_samples"]:
        raise DataError(f"{path}: damaged (num_samples is {tree['num_samples']}, its shards say {manifest.num_samples})")
    return manifest
