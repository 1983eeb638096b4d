"""One shard from its records to disk: tar, index rows, and the part file that says it is finished."""

import collections
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import webdataset

from ..cli.errors import DataError
from .atomic import atomic_file, sha256_file, write_json
from .encode import Encoded, encode
from .images import UnreadableImageError
from .index import Row, hash_key, read_table, to_table, write_index
from .manifest import ShardEntry
from .shard_pool import Tick
from .sources import Reader, Record, printable
from .tars import TarSample, scan

PARTS_FOLDER = ".parts"

_KEY_DIGITS = 9
_LABEL_MEMBER, _CAPTION_MEMBER = "json", "txt"


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """A shard to write: `records[i]` gets the key `first_key + i`, zero-padded; `quality` counts where `resize` is given."""

    folder: Path
    number: int
    name: str
    first_key: int
    records: Sequence[Record]
    reader: Reader
    resize: int | None
    quality: int
    skip_unreadable: bool


@dataclasses.dataclass(frozen=True)
class ShardPart:
    """A finished shard: its manifest entry, the samples left out as (printable name, reason), and how many images changed how."""

    number: int
    entry: ShardEntry
    skipped: tuple[tuple[str, str], ...]
    changes: dict[str, int]


def write_shard(task: ShardTask, tick: Tick) -> ShardPart:
    """Writes one shard and its part files; the same task always makes the same bytes.

    Raises:
        DataError: for an unreadable image, unless such are skipped.
        OSError: naming the shard, when the disk is full or read-only.
    """
    path = task.folder / task.name
    encoded: dict[int, tuple[Record, Encoded]] = {}
    skipped: list[tuple[str, str]] = []
    with atomic_file(path) as file, _tar_writer(file) as tar:
        for key, record in enumerate(task.records, task.first_key):
            try:
                image = _load(task, record)
            except UnreadableImageError as error:
                if not task.skip_unreadable:
                    remedy = "repair or remove it, or use --unreadable skip; then run the same command again"
                    raise DataError(f"{printable(record.name)}: {error}; {remedy}") from None
                skipped.append((printable(record.name), str(error)))
            else:
                members = {image.extension: image.data, _LABEL_MEMBER: _label_member(record)}
                if record.captions:
                    members[_CAPTION_MEMBER] = "\n".join(record.captions).encode()
                tar.write({"__key__": sample_key(key), **members})
                encoded[hash_key(sample_key(key))] = record, dataclasses.replace(image, data=b"")
            tick(1)
    rows = [_row(task.number, sample, *encoded[hash_key(sample.key)]) for sample in scan(path)]
    entry = ShardEntry(task.name, path.stat().st_size, sha256_file(path), len(rows))
    changes = collections.Counter[str](image.change for _, image in encoded.values())
    part = ShardPart(task.number, entry, tuple(skipped), dict(changes))
    _write_part(task.folder, part, rows)
    return part


def sample_key(number: int) -> str:
    """Returns the WebDataset key of a sample: digits only, since a dot would end the key."""
    return f"{number:0{_KEY_DIGITS}d}"


def read_part(folder: Path, name: str) -> ShardPart | None:
    """Returns what an earlier run finished of the shard called `name`, None unless tar, rows and part file are all there."""
    path = _part_path(folder, name, "json")
    if not path.exists():
        return None
    tree = json.loads(path.read_bytes())
    entry = ShardEntry(**tree["entry"])
    shard = folder / name
    if not shard.exists() or shard.stat().st_size != entry.size_bytes:
        return None
    return ShardPart(tree["number"], entry, tuple((sample, reason) for sample, reason in tree["skipped"]), tree["changes"])


def read_rows(folder: Path, name: str) -> Any:
    """Returns the index rows of a finished shard as an Arrow table."""
    return read_table(_part_path(folder, name, "arrow"))


def _write_part(folder: Path, part: ShardPart, rows: Sequence[Row]) -> None:
    write_index(_part_path(folder, part.entry.name, "arrow"), [to_table(rows)])
    write_json(_part_path(folder, part.entry.name, "json"), dataclasses.asdict(part))  # last: it says that the rest is there


def _part_path(folder: Path, name: str, suffix: str) -> Path:
    return folder / PARTS_FOLDER / f"{name}.{suffix}"


def _tar_writer(file: IO[bytes]) -> Any:
    """Returns a writer with a fixed time and owner: the bytes depend on the samples alone."""
    return webdataset.TarWriter(file, user="bamboo", group="bamboo", mtime=0.0, encoder=False)


def _load(task: ShardTask, record: Record) -> Encoded:
    try:
        data = task.reader.read(record)
    except OSError as error:
        raise UnreadableImageError(f"cannot be read ({error.strerror or error})") from None
    return encode(data, task.resize, task.quality)


def _label_member(record: Record) -> bytes:
    content: dict[str, Any] = {"labels": record.labels}
    if record.confidences is not None:
        content["confidences"] = record.confidences
    content["source"] = record.name
    return json.dumps({**record.fields, **content}).encode()


def _row(shard: int, sample: TarSample, record: Record, image: Encoded) -> Row:
    extent = sample.image
    assert extent is not None, "every sample is written with an image"
    labels, confidences = record.labels, record.confidences
    return Row(shard, extent.offset, extent.size, image.width, image.height, labels, confidences, hash_key(sample.key))
