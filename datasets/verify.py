"""`bamboo shards verify`: sizes, hashes and tars, the index against the tars, dataset.json against both.

bamboo shards verify shards/ --decode
"""

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from ..cli.errors import EXIT_DONE, EXIT_FAILURE, BambooError, DataError
from ..cli.progress import Progress
from .atomic import sha256_file
from .images import UnreadableImageError, decode_rgb
from .index import FILE_NAME as INDEX_NAME
from .index import Index, hash_key, read_index
from .manifest import FILE_NAME as MANIFEST_NAME
from .manifest import Manifest, ShardEntry, read_manifest
from .shard_pool import Tick, available_processes, map_shards
from .shard_settings import VerifySettings
from .shard_writer import PARTS_FOLDER
from .sources import printable
from .tars import TarSample, read_extent, scan

_SHOWN_PER_SHARD = 5


@dataclasses.dataclass(frozen=True)
class Defect:
    """Something that is not as it was written: the file it is in, and what."""

    file: str
    what: str


@dataclasses.dataclass(frozen=True, eq=False)
class ShardRows:
    """The index rows of one shard, int64[n] each but for `key_hash`."""

    offset: npt.NDArray[np.int64]
    size: npt.NDArray[np.int64]
    width: npt.NDArray[np.int32]
    height: npt.NDArray[np.int32]
    key_hash: npt.NDArray[np.uint64]


@dataclasses.dataclass(frozen=True, eq=False)
class VerifyTask:
    """One shard to check; `rows` is None where the index is unreadable, `skipped` are keys that `index` left out on purpose."""

    path: Path
    entry: ShardEntry
    rows: ShardRows | None
    skipped: frozenset[str]
    decode: bool


@dataclasses.dataclass(frozen=True)
class ShardReport:
    """What was found in one shard; `sha256` is empty where the file is missing."""

    name: str
    sha256: str
    messages: tuple[str, ...]


def run(config: VerifySettings) -> int:
    """Checks, lists the defects on standard output, and returns the exit code."""
    try:
        manifest = read_manifest(config.folder)
    except DataError as error:
        defects, checked = [Defect(MANIFEST_NAME, str(error))], ""
    else:
        defects = verify(config.folder, manifest, decode=config.decode, processes=config.processes or available_processes())
        checked = f"{manifest.num_samples:,} samples in {len(manifest.shards):,} shards"
    for defect in defects:
        sys.stdout.write(f"{defect.file}: {defect.what}\n")
    verdict = f"{len(defects):,} defects" if defects else "no defect"
    sys.stdout.write(f"verified {config.folder}: {checked + ', ' if checked else ''}{verdict}\n")
    return EXIT_FAILURE if defects else EXIT_DONE


def verify(folder: Path, manifest: Manifest, *, decode: bool, processes: int) -> list[Defect]:
    """Returns every defect of a shard folder, those of dataset.json and index.arrow first, then by shard."""
    defects = list(_manifest_defects(folder, manifest))
    index: Index | None = None
    try:
        index = read_index(folder / INDEX_NAME)
        defects += _index_defects(folder, manifest, index)
    except DataError as error:
        defects.append(Defect(INDEX_NAME, str(error)))
    tasks = _tasks(folder, manifest, index, decode)
    with Progress(manifest.num_samples, "verify", "samples") as progress:
        reports = {report.name: report for report in map_shards(verify_shard, tasks, processes, progress)}
    owners = {entry.sha256: entry.name for entry in manifest.shards}
    for entry in manifest.shards:
        report = reports[entry.name]
        if report.sha256 not in ("", entry.sha256):
            owner = owners.get(report.sha256)
            altered = f"altered: its SHA-256 is {report.sha256}, not {entry.sha256}"
            defects.append(Defect(entry.name, f"swapped: it holds the content of {owner}" if owner else altered))
        defects += [Defect(entry.name, message) for message in report.messages]
    return defects


def verify_shard(task: VerifyTask, tick: Tick) -> ShardReport:
    """Returns what is wrong with one shard; comparing its hash is left to the caller, who knows all of them."""
    if not task.path.is_file():
        return ShardReport(task.path.name, "", ("missing",))
    messages, size = list[str](), task.path.stat().st_size
    if size != task.entry.size_bytes:
        change = "truncated" if size < task.entry.size_bytes else "longer than it was"
        messages.append(f"{change}: {size} bytes, {MANIFEST_NAME} says {task.entry.size_bytes}")
    messages += _shorten(list(_tar_messages(task, tick)))
    return ShardReport(task.path.name, sha256_file(task.path), tuple(messages))


def _tar_messages(task: VerifyTask, tick: Tick) -> Iterator[str]:
    """Yields what a walk through the tar shows: damage, and every difference to the index rows."""
    number = 0
    try:
        with task.path.open("rb") as file:
            for sample in scan(task.path):
                if sample.key in task.skipped:
                    continue
                tick(1)
                yield from _sample_messages(task, sample, number, file)
                number += 1
    except BambooError as error:
        yield str(error)
        return
    if number != task.entry.num_samples:
        yield f"holds {number} samples, {MANIFEST_NAME} says {task.entry.num_samples}"
    if task.rows is not None and len(task.rows.offset) != number:
        yield f"holds {number} samples, {INDEX_NAME} has {len(task.rows.offset)} rows"


def _sample_messages(task: VerifyTask, sample: TarSample, number: int, file: IO[bytes]) -> Iterator[str]:
    where, extent, rows = printable(sample.key), sample.image, task.rows
    if extent is None:
        yield f"{where}: no image among its members"
        return
    if rows is not None and number < len(rows.offset):
        if (rows.offset[number], rows.size[number]) != (extent.offset, extent.size):
            at = f"{rows.size[number]} bytes at {rows.offset[number]}"
            yield f"{where}: {extent.size} bytes at {extent.offset}, {INDEX_NAME} says {at}"
        if rows.key_hash[number] != hash_key(sample.key):
            yield f"{where}: {INDEX_NAME} has another key in row {number} of this shard"
    if task.decode:
        yield from _image_messages(rows, number, where, read_extent(file, extent))


def _image_messages(rows: ShardRows | None, number: int, where: str, data: bytes) -> Iterator[str]:
    try:
        height, width = decode_rgb(data).shape[1:]
    except UnreadableImageError as error:
        yield f"{where}: {error}"
        return
    if rows is not None and number < len(rows.width) and (rows.width[number], rows.height[number]) != (width, height):
        yield f"{where}: {width}×{height} pixels, {INDEX_NAME} says {rows.width[number]}×{rows.height[number]}"


def _manifest_defects(folder: Path, manifest: Manifest) -> Iterator[Defect]:
    tree = json.loads((folder / MANIFEST_NAME).read_bytes())
    for name, actual in (("data_hash", manifest.data_hash), ("num_classes", len(manifest.classes))):
        if tree.get(name) != actual:
            yield Defect(MANIFEST_NAME, f"altered: {name} is {tree.get(name)}, its content says {actual}")
    if [entry.get("id") for entry in tree["classes"]] != list(range(len(manifest.classes))):
        yield Defect(MANIFEST_NAME, "altered: the class ids do not count from 0")
    listed = {entry.name for entry in manifest.shards}
    for path in sorted(folder.glob("*.tar")):
        if path.name not in listed:
            yield Defect(path.name, f"not in {MANIFEST_NAME}")
    if (folder / PARTS_FOLDER).exists():
        yield Defect(PARTS_FOLDER, "left by an unfinished pack; run its command again")


def _index_defects(folder: Path, manifest: Manifest, index: Index) -> Iterator[Defect]:
    actual = sha256_file(folder / INDEX_NAME)
    if actual != manifest.index_sha256:
        yield Defect(INDEX_NAME, f"altered: its SHA-256 is {actual}, not {manifest.index_sha256}")
    if len(index) != manifest.num_samples:
        yield Defect(INDEX_NAME, f"{len(index)} rows, {MANIFEST_NAME} says {manifest.num_samples} samples")
    if len(index.labels) and not 0 <= int(index.labels.min()) <= int(index.labels.max()) < len(manifest.classes):
        found = f"{index.labels.min()} to {index.labels.max()}"
        yield Defect(INDEX_NAME, f"labels from {found}, outside the {len(manifest.classes)} classes of {MANIFEST_NAME}")


def _tasks(folder: Path, manifest: Manifest, index: Index | None, decode: bool) -> list[VerifyTask]:
    skipped: dict[str, Sequence[str]] = manifest.made_by.get("skipped", {})
    return [
        VerifyTask(folder / entry.name, entry, _rows(index, i), frozenset(skipped.get(entry.name, ())), decode)
        for i, entry in enumerate(manifest.shards)
    ]


def _rows(index: Index | None, shard: int) -> ShardRows | None:
    if index is None:
        return None
    chosen = index.shard == shard
    return ShardRows(*(column[chosen] for column in (index.offset, index.size, index.width, index.height, index.key_hash)))


def _shorten(messages: list[str]) -> list[str]:
    more = len(messages) - _SHOWN_PER_SHARD
    return messages if more <= 0 else [*messages[:_SHOWN_PER_SHARD], f"… and {more:,} more of this kind"]
