"""`bamboo shards index`: index.arrow and dataset.json beside WebDataset tars that others made; the tars are only read.

bamboo shards index imagenet-shards/ --classes names.txt
"""

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from ..cli.errors import EXIT_DONE, BambooError, DataError, UserError
from ..cli.progress import Progress
from .amounts import bytes_text
from .atomic import sha256_file
from .class_list import ClassList, numbered_classes, read_class_list
from .images import UnreadableImageError, image_size
from .index import FILE_NAME as INDEX_NAME
from .index import Row, hash_key, to_table, write_index
from .manifest import FILE_NAME as MANIFEST_NAME
from .manifest import Manifest, ShardEntry, read_manifest
from .shard_pool import Tick, available_processes, map_shards
from .shard_settings import IndexSettings
from .sources import printable
from .tars import TarSample, read_extent, refuse_compressed, scan


@dataclasses.dataclass(frozen=True)
class IndexTask:
    """One tar to index."""

    path: Path
    number: int
    classes: ClassList | None
    json_label: str
    skip_unreadable: bool


@dataclasses.dataclass(frozen=True)
class IndexPart:
    """One indexed tar: its manifest entry, its rows as an Arrow table, the largest label, and the keys left out."""

    number: int
    entry: ShardEntry
    table: Any
    largest_label: int
    skipped: tuple[str, ...]


def run(config: IndexSettings) -> int:
    """Indexes, says how it went on standard output, and returns the exit code."""
    started = time.monotonic()
    paths = _tars(config.folder)
    classes = _classes(config)
    for path in paths:
        refuse_compressed(path)
    tasks = [IndexTask(path, i, classes, config.json_label, config.unreadable == "skip") for i, path in enumerate(paths)]
    parts: dict[int, IndexPart] = {}
    with Progress(len(tasks), "index", "shards") as progress:
        for part in map_shards(index_shard, tasks, config.processes or available_processes(), progress):
            parts[part.number] = part
    manifest = _write(config.folder, [parts[i] for i in range(len(tasks))], classes)
    size = bytes_text(sum(entry.size_bytes for entry in manifest.shards))
    num_skipped = manifest.made_by["num_skipped"]
    left_out = f", {num_skipped:,} left out (listed in {MANIFEST_NAME})" if num_skipped else ""
    sys.stdout.write(
        f"indexed {manifest.num_samples:,} images{left_out} of {len(manifest.classes):,} classes in {len(tasks):,} shards, "
        f"{size}, in {time.monotonic() - started:.1f} s: {config.folder}\n"
    )
    return EXIT_DONE


def index_shard(task: IndexTask, tick: Tick) -> IndexPart:
    """Returns the rows of one tar.

    Raises:
        UserError: for a label that is not in the class list.
        DataError: for a damaged tar, label or, unless such are skipped, image.
    """
    rows, skipped = list[Row](), list[str]()
    with task.path.open("rb") as file:
        for sample in scan(task.path):
            tick(0)
            where = f"{task.path.name}:{printable(sample.key)}"
            try:
                rows.append(_row(task, sample, file, where))
            except UnreadableImageError as error:
                if not task.skip_unreadable:
                    raise DataError(f"{where}: {error}; use --unreadable skip to leave it out of the index") from None
                skipped.append(sample.key)
    tick(1)
    entry = ShardEntry(task.path.name, task.path.stat().st_size, sha256_file(task.path), len(rows))
    largest = max((label for row in rows for label in row.labels), default=-1)
    return IndexPart(task.number, entry, to_table(rows), largest, tuple(skipped))


def _row(task: IndexTask, sample: TarSample, file: IO[bytes], where: str) -> Row:
    extent = sample.image
    if extent is None:
        raise UnreadableImageError(f"has no image among its members ({', '.join(sample.members)})")
    width, height = image_size(read_extent(file, extent))
    labels, confidences = _labels(task, sample, file, where)
    return Row(task.number, extent.offset, extent.size, width, height, labels, confidences, hash_key(sample.key))


def _labels(task: IndexTask, sample: TarSample, file: IO[bytes], where: str) -> tuple[Sequence[int], Sequence[float] | None]:
    if "cls" in sample.members:
        text = read_extent(file, sample.members["cls"]).decode("utf-8", "replace").strip()
        return [_label(task, text, f"{where}.cls")], None
    if "json" not in sample.members:
        return [], None
    try:
        tree = json.loads(read_extent(file, sample.members["json"]))
    except ValueError as error:
        raise DataError(f"{where}.json: not JSON: {error}") from None
    if not isinstance(tree, dict):
        return [], None
    found = tree.get("labels", tree.get(task.json_label))
    if found is None:
        return [], None
    labels = [_label(task, value, f"{where}.json") for value in (found if isinstance(found, list) else [found])]
    return labels, _confidences(tree.get("confidences"), len(labels), f"{where}.json")


def _label(task: IndexTask, value: object, where: str) -> int:
    if isinstance(value, str) and not value.removeprefix("-").isdecimal():
        if task.classes is None:
            raise UserError(f"{where}: label {value!r} is no integer; give the class names with --classes FILE")
        return task.classes.find(value, where)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise DataError(f"{where}: label {value!r} is neither an integer nor a class name; see --json-label")
    label = int(value)
    if task.classes is not None:
        task.classes.require(label, where)
    elif not 0 <= label < 2**31:
        raise UserError(f"{where}: label {label}; allowed: 0 to {2**31 - 1}; labels count from 0")
    return label


def _confidences(found: object, num_labels: int, where: str) -> Sequence[float] | None:
    if found is None:
        return None
    valid = isinstance(found, list) and len(found) == num_labels
    if not isinstance(found, list) or not valid or not all(isinstance(c, int | float) and 0 <= c <= 1 for c in found):
        raise DataError(f"{where}: confidences {found!r}; allowed: {num_labels} numbers from 0 to 1, one per label")
    return None if all(confidence == 1 for confidence in found) else found


def _tars(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"FOLDER={folder}: no such folder")
    compressed = sorted(path for pattern in ("*.tar.*", "*.tgz", "*.txz", "*.tbz2") for path in folder.glob(pattern))
    for path in compressed:
        refuse_compressed(path)
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        raise UserError(f"FOLDER={folder}: no *.tar in it; to make shards from images: bamboo shards pack SRC --out DIR")
    return paths


def _classes(config: IndexSettings) -> ClassList | None:
    """Returns the classes of --classes, else those of the dataset.json that is replaced, else None."""
    if (config.folder / MANIFEST_NAME).exists() and not config.overwrite:
        raise UserError(f"FOLDER={config.folder}: has a {MANIFEST_NAME} already; use --overwrite to write it anew")
    if config.classes is not None:
        return read_class_list(config.classes)
    try:
        entries = read_manifest(config.folder).classes
    except BambooError:
        return None
    names = {entry.name: i for i, entry in enumerate(entries)}
    return ClassList(entries, names, str(config.folder / MANIFEST_NAME))


def _write(folder: Path, parts: Sequence[IndexPart], classes: ClassList | None) -> Manifest:
    num_samples = sum(part.entry.num_samples for part in parts)
    if num_samples == 0:
        raise DataError(f"{folder}: no sample with a readable image in {len(parts)} tars")
    listed = classes or numbered_classes(max(part.largest_label for part in parts), str(folder))
    (folder / MANIFEST_NAME).unlink(missing_ok=True)  # from here on there is no dataset until the new one is whole
    write_index(folder / INDEX_NAME, [part.table for part in parts])
    made_by = {
        "command": "bamboo shards index",
        "num_skipped": sum(len(part.skipped) for part in parts),
        "skipped": {part.entry.name: list(part.skipped) for part in parts if part.skipped},
    }
    manifest = Manifest(listed.entries, tuple(part.entry for part in parts), sha256_file(folder / INDEX_NAME), made_by)
    manifest.write(folder)
    return manifest
