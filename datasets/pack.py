"""`bamboo shards pack`: a pool of images → WebDataset shards, index.arrow and dataset.json.

Assignment is decided before any work (`pack_plan`), each shard is one unit of work (`shard_writer`), finished shards are kept
in `.parts/` until the end (`pack_folder`), and dataset.json is written last: the same command goes on after a kill, and the
result is byte-identical for any number of processes and kills.

An LMDB is made of such shards, in a folder inside its own, once they are finished.

  bamboo shards pack photos/ --out shards/ --resize 256
"""

import collections
import importlib.metadata
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..cli.config import dump
from ..cli.errors import EXIT_DONE, DataError
from ..cli.progress import Progress
from .amounts import bytes_text
from .atomic import sha256_file, write_text
from .class_list import read_class_list
from .encode import DEFAULT_QUALITY
from .index import FILE_NAME as INDEX_NAME
from .index import write_index
from .lmdb_files import DATA_NAME
from .lmdb_writer import WORK_NAME, in_key_order, is_finished, write_lmdb
from .manifest import Manifest, read_manifest
from .open_source import open_source
from .pack_folder import PACK_OUT, SKIPPED_NAME, OutOption, finish, state_of, writing
from .pack_plan import PackPlan, make_plan
from .shard_pool import available_processes, map_shards
from .shard_settings import PackSettings
from .shard_writer import PARTS_FOLDER, ShardPart, ShardTask, read_part, read_rows, write_shard
from .sources import MISSING, Source, listing

DEFAULT_SAMPLES_PER_SHARD = 10_000

_SAMPLES_PER_PART = 1000  # of a pack into an LMDB: what one process does at a time, and a killed one may have to do again
_CHANGES = ("kept", "converted", "resized")
_MACHINE_OPTIONS = ("out", "processes", "overwrite", "dry_run")  # what cannot change the result
_VERSIONED = ("bamboo-vision", "pillow", "torchvision", "webdataset")


def run(config: PackSettings) -> int:
    """Packs, says how it went on standard output, and returns the exit code."""
    started = time.monotonic()
    classes = None if config.classes is None else read_class_list(config.classes)
    folder = _shard_folder(config)
    copy = folder / PARTS_FOLDER / "pool.tar"
    source = open_source(config.src, config.format, config.subdir or "", config.root, classes, copy, config.annotations)
    _warn(source, config)
    if config.to == "lmdb":
        source = in_key_order(source)
    plan = plan_of(source, config)
    has_lmdb = config.to == "lmdb" and is_finished(config.out, plan.identity, overwrite=config.overwrite)
    state = "finished" if has_lmdb else state_of(folder, plan, config.name, overwrite=config.overwrite)
    if config.dry_run:
        sys.stdout.write(_forecast(source, plan, config, state))
        return EXIT_DONE
    if has_lmdb or (config.to == "shards" and state == "finished"):
        _clean(config)
        sys.stdout.write(f"{config.out} is already packed from this source with these options: nothing to do\n")
        return EXIT_DONE
    with writing(folder, plan, config.name, state):
        if state == "finished":
            manifest = read_manifest(folder)
        else:
            options = {name: value for name, value in dump(config).items() if name not in _MACHINE_OPTIONS}
            made_by = {"command": "bamboo shards pack", "options": options}
            manifest = _complete(source, plan, _write_shards(source, plan, config), config, made_by)
        if config.to == "lmdb":
            write_lmdb(folder, config.out)
        _clean(config)
    sys.stdout.write(_summary(manifest, config, time.monotonic() - started))
    return EXIT_DONE


def pack_shards(source: Source, plan: PackPlan, config: PackSettings, made_by: Mapping[str, Any], named: OutOption = PACK_OUT) -> Manifest:
    """Returns the manifest of `config.out`, into which it packs a plan's shards, or finishes what a killed run left, or finds all done.

    Args:
        config: where and how; what it says of the source and of the order goes unused.
        made_by: command and options for `dataset.json`; the command must be one of `NAMING_COMMANDS` of `shard_source`.
        named: how messages name `config.out`.

    Raises:
        UserError: when `config.out` holds something else, or another process is packing into it.
        DataError: for an unreadable image, unless such are skipped.
    """
    state = state_of(config.out, plan, config.name, overwrite=config.overwrite, named=named)
    if state == "finished":
        finish(config.out)
        return read_manifest(config.out)
    with writing(config.out, plan, config.name, state, named):
        manifest = _complete(source, plan, _write_shards(source, plan, config), config, made_by)
        finish(config.out)
    return manifest


def _shard_folder(config: PackSettings) -> Path:
    """Returns where shards are written: an LMDB is made of finished ones, so that a killed pack goes on."""
    return config.out / WORK_NAME if config.to == "lmdb" else config.out


def _clean(config: PackSettings) -> None:
    """Removes what only an unfinished pack needs."""
    if config.to == "lmdb":
        shutil.rmtree(_shard_folder(config), ignore_errors=True)
    else:
        finish(config.out)


def plan_of(source: Source, config: PackSettings) -> PackPlan:
    """Returns the plan for a source; only what changes the result enters its options."""
    num_samples = config.samples_per_shard
    if num_samples is None and config.bytes_per_shard is None:
        num_samples = DEFAULT_SAMPLES_PER_SHARD if config.to == "shards" else _SAMPLES_PER_PART
    options = {
        "name": config.name,
        "samples_per_shard": num_samples,
        "bytes_per_shard": config.bytes_per_shard,
        "shuffle": config.shuffle,
        "resize": config.resize,
        "quality": None if config.resize is None else config.quality or DEFAULT_QUALITY,
    }
    seed = config.shuffle if isinstance(config.shuffle, int) and config.to == "shards" else None
    return make_plan(source, options, seed, num_samples, config.bytes_per_shard)


def _warn(source: Source, config: PackSettings) -> None:
    for note in source.notes:
        sys.stderr.write(f"note: {note}\n")
    used = {label for record in source.records for label in record.labels}
    empty = [entry.name for i, entry in enumerate(source.classes) if i not in used]
    if empty:
        sys.stderr.write(f"warning: {len(empty):,} of {len(source.classes):,} classes have no image: {listing(empty)}\n")
    missing = [record.name for record in source.records if record.size_bytes == MISSING]
    if missing and config.unreadable == "fail":
        count = f"{len(missing):,} of {len(source.records):,} images are missing: {listing(missing)}"
        raise DataError(f"{config.src}: {count}; correct the list, --root or --annotations, or use --unreadable skip")


def _write_shards(source: Source, plan: PackPlan, config: PackSettings) -> list[ShardPart]:
    """Returns the parts of all shards, of which those that an earlier run finished are not done again."""
    tasks = _tasks(source, plan, config)
    parts = {task.number: part for task in tasks if (part := _finished(task)) is not None}
    left = [task for task in tasks if task.number not in parts]
    with Progress(len(source.records), "pack") as progress:
        progress.resume(sum(len(tasks[number].records) for number in parts))
        if left:
            source.reader.prepare()
        for part in map_shards(write_shard, left, config.processes or available_processes(), progress):
            parts[part.number] = part
    return [parts[task.number] for task in tasks]


def _tasks(source: Source, plan: PackPlan, config: PackSettings) -> list[ShardTask]:
    return [
        ShardTask(
            folder=_shard_folder(config),
            number=number,
            name=_shard_name(config, number),
            first_key=start,
            records=[source.records[i] for i in plan.order[start:stop]],
            reader=source.reader,
            resize=config.resize,
            quality=config.quality or DEFAULT_QUALITY,
            skip_unreadable=config.unreadable == "skip",
        )
        for number, (start, stop) in enumerate(plan.bounds)
    ]


def _shard_name(config: PackSettings, number: int) -> str:
    return f"{config.name}-{number:06d}.tar"


def _finished(task: ShardTask) -> ShardPart | None:
    part = read_part(task.folder, task.name)
    if part is not None and part.skipped and not task.skip_unreadable:
        return None  # skipped by an earlier run with --unreadable skip; to fail now, it is done again
    return part


def _complete(source: Source, plan: PackPlan, parts: Sequence[ShardPart], config: PackSettings, made_by: Mapping[str, Any]) -> Manifest:
    """Writes what makes the shards a dataset, dataset.json last."""
    skipped = [item for part in parts for item in part.skipped]
    if len(skipped) == len(source.records):
        name, reason = skipped[0]
        raise DataError(f"{config.src}: none of {len(skipped):,} images is readable; the first: {name}: {reason}")
    folder = _shard_folder(config)
    write_index(folder / INDEX_NAME, [read_rows(folder, part.entry.name) for part in parts])
    if skipped:
        lines = [f"{name}\t{reason}\n" for name, reason in skipped]
        write_text(folder / SKIPPED_NAME, "name\treason\n" + "".join(lines))
    counted: dict[str, Any] = {
        "versions": {package: importlib.metadata.version(package) for package in _VERSIONED},
        "plan": plan.identity,
        "num_skipped": len(skipped),
        **{f"num_{change}": count for change, count in _changes(parts).items()},
    }
    shards = tuple(part.entry for part in parts)
    manifest = Manifest(source.classes, shards, sha256_file(folder / INDEX_NAME), {**made_by, **counted})
    manifest.write(folder)
    return manifest


def _changes(parts: Sequence[ShardPart]) -> dict[str, int]:
    counted = collections.Counter[str]()
    for part in parts:
        counted.update(part.changes)
    return {change: counted[change] for change in _CHANGES}


def _forecast(source: Source, plan: PackPlan, config: PackSettings, state: str) -> str:
    last = len(plan.bounds) - 1
    names = _shard_name(config, 0) + (f" … {_shard_name(config, last)}" if last else "")
    into = f"one LMDB: {config.out / DATA_NAME}" if config.to == "lmdb" else f"{len(plan.bounds):,} shards: {config.out / names}"
    return (
        f"would pack {len(source.records):,} images of {len(source.classes):,} classes, "
        f"{bytes_text(source.size_bytes)}, from {config.src}\n"
        f"into {into} ({state}); nothing was written\n"
    )


def _summary(manifest: Manifest, config: PackSettings, seconds: float) -> str:
    counts = {change: manifest.made_by[f"num_{change}"] for change in _CHANGES}
    changes = ", ".join(f"{count:,} {change}" for change, count in counts.items() if count or change == "kept")
    skipped = manifest.made_by["num_skipped"]
    listed = f", {skipped:,} skipped (unreadable; listed in {config.out / SKIPPED_NAME})" if skipped else ""
    to_lmdb = config.to == "lmdb"
    size = bytes_text((config.out / DATA_NAME).stat().st_size if to_lmdb else sum(shard.size_bytes for shard in manifest.shards))
    into = "one LMDB" if to_lmdb else f"{len(manifest.shards):,} shards"
    return (
        f"packed {manifest.num_samples:,} images of {len(manifest.classes):,} classes into {into}, "
        f"{size}, in {seconds:.1f} s: {config.out}\n"
        f"images: {changes}{listed}\n"
    )
