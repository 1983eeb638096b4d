"""A snapshot of a grown dataset: what every sample's gain is at that moment, and how often each is to be taken.

    STATE/snapshots/000002/
        snapshot.json                    all that made it, counts, audit, and the SHA-256 of every file below; its own hash is its identity
        sources/000000/SHARD.parquet     the columns `SETTLED` of the samples of one tar; those of `CAUSAL` stand in STATE/sources
        probabilities/000000.npy         float32[N] expected visits an epoch of the samples of a training folder, in the order of its index
        probabilities/000000-second.npy  those of every second epoch, where there are two phases; of coupled ones the membership, 0 or 1
    STATE/latest                         the number of the newest snapshot

Snapshots are never changed. Training reads snapshot.json and the probabilities, nothing else, so it needs no index of neighbours.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from ...cli.errors import DataError, UserError
from ..atomic import sha256_file, sha256_json
from .columns import CAUSAL, SETTLED, Columns, join_columns, read_columns

FORMAT, VERSION = "bamboo-growth-snapshot", 1
CARD_NAME, LATEST_NAME = "snapshot.json", "latest"
SNAPSHOTS, SOURCES, PROBABILITIES = "snapshots", "sources", "probabilities"

ONCE = ("number", "parent")
"""What of a snapshot.json says nothing of what the snapshot holds."""

_NEEDED = {"number": int, "sources": list, "training": list, "coupled": bool, "files": dict}
_ENTRY = {"location": str, "data_hash": str, "num_samples": int}
_OF_GROWTH = {"growth": dict, "audit": list, "decisions": dict, "window": int, "settled": bool, "policy": dict, "policy_summary": dict}
"""What `bamboo grow` says besides: all of it, or, where a snapshot was laid down by hand, none."""
_DIGITS = 18  # of a number that `latest` may hold


@dataclasses.dataclass(frozen=True)
class SnapshotSource:
    """A shard folder that was grown over."""

    location: str
    """Path or address of the shard folder."""
    data_hash: str
    num_samples: int
    shards: tuple[str, ...]
    """File names of its tars, in order."""


@dataclasses.dataclass(frozen=True)
class TrainingFolder:
    """A shard folder that a snapshot is trained from: a source, or sources packed anew by their gain."""

    location: str
    data_hash: str
    num_samples: int
    probabilities: Path
    """.npy, float32[N]: expected visits an epoch, in the order of the index; the epoch is as long as their sum, rounded."""
    second: Path | None
    """The same for the second, fourth, … epoch; None: as the first.

    Of a coupled snapshot the membership: 1 for the samples that a pair of epochs sees, once each, 0 for the others; None: it sees all.
    """
    grouped: bool
    """Whether its shards are sorted by probability, so that an epoch may pass over some of them."""


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A snapshot, opened."""

    state: Path
    number: int
    content_hash: str
    """Hex SHA-256 of snapshot.json, which holds the hashes of all other files."""
    sources: tuple[SnapshotSource, ...]
    training: tuple[TrainingFolder, ...]
    coupled: bool
    """Whether every second epoch takes what the one before left over, of each training folder's members (`TrainingFolder.second`)."""
    card: dict[str, Any]
    """All of snapshot.json."""

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return snapshot_folder(self.state, self.number)

    def columns(self, source: int) -> Columns:
        """Returns the columns `CAUSAL` and `SETTLED` of a source, in the order of its index.

        Raises:
            DataError: when one of its files is missing or damaged.
        """
        shards = self.sources[source].shards
        name = f"{source:06d}"
        causal = [read_columns(sidecar(self.state / SOURCES / name, shard), CAUSAL) for shard in shards]
        settled = [read_columns(sidecar(self.folder / SOURCES / name, shard), SETTLED) for shard in shards]
        columns = join_columns(causal, CAUSAL) | join_columns(settled, SETTLED)
        if {len(column) for column in columns.values()} != {self.sources[source].num_samples}:
            raise DataError(f"{self.folder}: its columns of source {source} are not as long as snapshot.json says")
        return columns


def snapshot_folder(state: Path, number: int) -> Path:
    """Returns where a snapshot of a growth state lies."""
    return state / SNAPSHOTS / f"{number:06d}"


def sidecar(folder: Path, shard: str) -> Path:
    """Returns the parquet file of a tar's samples in a folder of them."""
    return folder / f"{shard.removesuffix('.tar')}.parquet"


def open_snapshot(location: Path, *, verify: bool = False) -> Snapshot:
    """Returns a snapshot: that of a snapshot folder, or the newest of a growth state.

    Args:
        verify: also compare the hashes of the probability columns.

    Raises:
        UserError: when there is none.
        DataError: when it is damaged or of another version.
    """
    folder = _newest(location) if (location / LATEST_NAME).exists() else location
    path = folder / CARD_NAME
    if not path.exists():
        raise UserError(f"{location}: neither a growth state with a snapshot nor a snapshot of one; make one with: bamboo grow")
    try:
        data = path.read_bytes()
        card = json.loads(data)
        if (card["format"], card["version"]) != (FORMAT, VERSION):
            raise DataError(f"{path}: format {card['format']} version {card['version']}; this Bamboo reads {FORMAT} version {VERSION}")
        _require(card, _NEEDED)
        if not _OF_GROWTH.keys().isdisjoint(card):
            _require(card, _OF_GROWTH)
            _require(card["policy"], {"kind": str})
        sources = tuple(_source(entry) for entry in card["sources"])
        training = tuple(_training(folder, entry) for entry in card["training"])
        snapshot = Snapshot(folder.parent.parent, card["number"], sha256_json(card), sources, training, card["coupled"], card)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({type(error).__name__}: {error})") from None
    if verify:
        verify_files(snapshot, PROBABILITIES)
    return snapshot


def content_of(card: dict[str, Any]) -> str:
    """Returns the hex SHA-256 of what a snapshot.json says, but for its number and what came before it."""
    return sha256_json({name: value for name, value in card.items() if name not in ONCE})


def verify_files(snapshot: Snapshot, under: str = "") -> None:
    """Compares the files of a snapshot, those below `under`, with their hashes in snapshot.json.

    Raises:
        DataError: naming the first that is missing or altered.
    """
    for name, sha256 in snapshot.card["files"].items():
        path = snapshot.folder / name
        if name.startswith(under) and (not path.is_file() or sha256_file(path) != sha256):
            raise DataError(f"{path}: missing or altered since the snapshot was made; make the snapshot anew with: bamboo grow")


def _newest(state: Path) -> Path:
    path = state / LATEST_NAME
    try:
        text = path.read_bytes().strip()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if not text.isdigit() or len(text) > _DIGITS:
        raise DataError(f"{path}: holds {text[:40]!r}, not the number of a snapshot")
    return snapshot_folder(state, int(text))


def _require(card: dict[str, Any], kinds: dict[str, type]) -> None:
    """Raises KeyError or TypeError where a card lacks something, or has it of another type."""
    for name, kind in kinds.items():
        if type(card[name]) is not kind:  # a bool is an int, too
            raise TypeError(f"{name} is of type {type(card[name]).__name__}, not {kind.__name__}")


def _source(entry: dict[str, Any]) -> SnapshotSource:
    _require(entry, _ENTRY | {"shards": list})
    if not all(isinstance(shard, str) for shard in entry["shards"]):
        raise TypeError("shards are not all names")
    return SnapshotSource(**entry | {"shards": tuple(entry["shards"])})


def _training(folder: Path, entry: dict[str, Any]) -> TrainingFolder:
    _require(entry, _ENTRY | {"grouped": bool})
    return TrainingFolder(
        location=entry["location"],
        data_hash=entry["data_hash"],
        num_samples=entry["num_samples"],
        probabilities=folder / entry["probabilities"],
        second=None if entry["second"] is None else folder / entry["second"],
        grouped=entry["grouped"],
    )
