"""Shards bucketed by gain: what a snapshot trains from, packed anew so that samples taken equally often lie together.

A reader of whole tars that visits a shard as often as its most wanted sample (p_max) reads Σ p_max samples for the Σ p that it uses. In
shards of a pool in random order p_max is near the greatest of all; in B buckets of equal counts it is near p: of probabilities even over
[0, 1], B + 1 samples are read for B used.

    OUT/shard-000000.tar, …, index.arrow, dataset.json   as `bamboo shards pack` writes them
    OUT/probabilities.npy                                float32[M] expected visits an epoch, in the order of the index
    OUT/probabilities-second.npy                         those of every second epoch, where the snapshot has them
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ...cli.errors import DataError, UserError
from ..atomic import atomic_file
from ..index import FILE_NAME as INDEX_NAME
from ..index import hash_key, read_index
from ..manifest import Manifest
from ..pack import pack_shards
from ..pack_folder import OutOption
from ..pack_plan import PackPlan, make_plan
from ..shard_settings import PackSettings
from ..shard_source import joined_source
from ..shard_writer import sample_key
from .folders import local_folders
from .snapshot import PROBABILITIES, Snapshot, TrainingFolder, content_of, verify_files

PROBABILITIES_NAME, SECOND_NAME = "probabilities.npy", "probabilities-second.npy"

_COMMAND = "bamboo grow"
_OUT = OutOption("--bucket.out", "name another folder, or remove what it holds")

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, eq=False)
class Bucketed:
    """A folder of bucketed shards, M samples."""

    folder: Path
    manifest: Manifest
    origins: Ids
    """int64[M, 2] (number of the snapshot's training folder, row in its index) of every sample, in the order of the new index."""
    buckets: Ids
    """int64[M] bucket of every sample, ascending; 0 has the greatest probabilities."""
    probabilities: Path
    second: Path | None


def bucket(
    snapshot: Snapshot,
    out: Path,
    *,
    num_buckets: int = 8,
    samples_per_shard: int,
    seed: int = 0,
    processes: int | None = None,
    keep_all: bool = False,
    unreadable: Literal["fail", "skip"] = "fail",
    overwrite: bool = False,
) -> Bucketed:
    """Packs the training folders of a snapshot into one, `out`, each of whose shards has samples of one bucket of probability alone.

    Buckets go from the greatest probability to the smallest, `bucket_numbers` says which; within a bucket the order is random, keyed by
    `seed`. Images are kept as they are, and so are labels, confidences, captions, metadata and names (those of several folders as
    `joined_source` has them). Records of all samples are in memory meanwhile, as in a pack. A call that was killed goes on when it is
    made again, and for any number of processes the files are the same, byte by byte.

    Args:
        keep_all: whether samples that no epoch takes come too, in a bucket of their own behind the others.
        unreadable: what an image that cannot be decoded does: end the call, or stay out and be listed in `skipped.tsv`.
        overwrite: whether a dataset that `out` holds is replaced.

    Raises:
        UserError: when a folder is remote or has changed, their classes differ, `out` is one of them or holds something else, or no
            sample is to be taken.
        DataError: when a tar, an image or a column is damaged.
    """
    if num_buckets < 1 or samples_per_shard < 1:
        raise UserError(f"num_buckets={num_buckets}, samples_per_shard={samples_per_shard}: both must be at least 1")
    folders = local_folders(snapshot.training, "bucketing")
    _require_apart(out, folders)
    first, second = _columns(snapshot)
    numbers = bucket_numbers(first, (first > 0) | (second > 0), num_buckets, keep_all=keep_all)
    kept = np.flatnonzero(numbers >= 0)
    if not len(kept):
        raise UserError(f"{snapshot.folder}: every probability is 0, so there is nothing to pack; make a snapshot of another policy")
    source = joined_source(folders)
    source = dataclasses.replace(source, records=[source.records[i] for i in kept.tolist()])
    options: dict[str, Any] = {"snapshot": content_of(snapshot.card), "num_buckets": num_buckets, "keep_all": keep_all}
    options |= {"samples_per_shard": samples_per_shard, "seed": seed}
    plan = make_plan(source, options, seed, samples_per_shard, None, numbers[kept])
    config = PackSettings(src=folders[0], out=out, processes=processes, unreadable=unreadable, overwrite=overwrite)
    manifest = pack_shards(source, plan, config, {"command": _COMMAND, "options": options}, _OUT)
    rows = kept[_packed(plan, out)]
    has_second = any(entry.second is not None for entry in snapshot.training)
    paths = _write_columns(out, first[rows], second[rows] if has_second else None)
    return Bucketed(out, manifest, _origins(rows, snapshot), numbers[rows], *paths)


def bucket_numbers(probabilities: Floats, taken: npt.NDArray[np.bool_], num_buckets: int, *, keep_all: bool) -> Ids:
    """Returns int64[N] the bucket of every sample, from 0 for the greatest probabilities on; -1: left out.

    Of the n samples that are taken, in descending order, bucket b of B ends where the probability changes nearest to n · b / B, so equal
    ones are never parted, and there are fewer buckets where that leaves one empty. The others are left out, or with `keep_all` the last.
    """
    numbers = np.full(len(probabilities), -1, np.int64)
    _, places, counts = np.unique(-probabilities[taken], return_inverse=True, return_counts=True)
    changes = np.concatenate([[0], np.cumsum(counts)])
    wanted = changes[-1] * np.arange(1, num_buckets) / num_buckets
    above = np.searchsorted(changes, wanted)
    cuts = np.unique(np.where(wanted - changes[above - 1] < changes[above] - wanted, above - 1, above))
    cuts = cuts[(cuts > 0) & (cuts < len(counts))]
    numbers[taken] = np.searchsorted(cuts, places, side="right")
    if keep_all:
        numbers[~taken] = numbers.max(initial=-1) + 1
    return numbers


def _require_apart(out: Path, folders: list[Path]) -> None:
    for folder in folders:
        if out.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{_OUT.option}={out}: lies in {folder}, which is to be packed anew; name another folder")


def _columns(snapshot: Snapshot) -> tuple[Floats, Floats]:
    """Returns the probabilities of all training folders, one after another: of the first and of every second epoch, if coupled 1 or 0."""
    verify_files(snapshot, PROBABILITIES)
    first = [_column(entry.probabilities, entry) for entry in snapshot.training]
    second = [
        np.ones(entry.num_samples, np.float32)  # a pair of epochs sees all of this folder
        if entry.second is None and snapshot.coupled
        else _column(entry.second or entry.probabilities, entry)
        for entry in snapshot.training
    ]
    return np.concatenate(first), np.concatenate(second)


def _column(path: Path, entry: TrainingFolder) -> Floats:
    try:
        column: Floats = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not a readable .npy file: {' '.join(str(error).split())}") from None
    if column.dtype != np.float32 or column.shape != (entry.num_samples,) or not (np.isfinite(column) & (column >= 0)).all():
        raise DataError(f"{path}: damaged: must hold {entry.num_samples:,} float32 numbers of at least 0")
    return column


def _packed(plan: PackPlan, folder: Path) -> Ids:
    """Returns which record each sample of a packed folder is: record plan.order[i] has the key i, if it was not skipped."""
    path = folder / INDEX_NAME
    keys = np.array([hash_key(sample_key(number)) for number in range(len(plan.order))], np.uint64)
    found = read_index(path).key_hash
    there = np.isin(keys, found)
    if not np.array_equal(keys[there], found):
        raise DataError(f"{path}: damaged: its keys are not those of its plan; see: bamboo shards verify {folder}")
    return plan.order[there]


def _origins(rows: Ids, snapshot: Snapshot) -> Ids:
    firsts = np.cumsum([0, *(entry.num_samples for entry in snapshot.training)])
    folders = np.searchsorted(firsts, rows, side="right") - 1
    return np.stack([folders, rows - firsts[folders]], axis=1)


def _write_columns(folder: Path, first: Floats, second: Floats | None) -> tuple[Path, Path | None]:
    paths = folder / PROBABILITIES_NAME, folder / SECOND_NAME
    with atomic_file(paths[0]) as file:
        np.save(file, first)
    if second is None:
        paths[1].unlink(missing_ok=True)  # of an earlier dataset, overwritten
        return paths[0], None
    with atomic_file(paths[1]) as file:
        np.save(file, second)
    return paths
