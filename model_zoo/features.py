"""Feature folders: a backbone's pooled features of a dataset, computed once.

One folder per (checkpoint hash, preprocessing, data hash, precision), named by their digest: `features.npy` (N × D; float32, or
float16 for a bf16 forward), `labels.npy` (int64[N]), `manifest.json`, written last. While it is being made it holds `part-*.npy`
of 4,096 rows and a lock; ranks own disjoint parts, and a killed run goes on with the parts that are missing.
"""

import contextlib
import dataclasses
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import numpy.lib.format
import numpy.typing as npt
import timm
import torch

from ..cli.errors import DataError
from ..cli.progress import Progress
from ..datasets.atomic import atomic_file, sha256_json
from ..datasets.feature_folder import FEATURES_NAME, FeatureFolder, Matrix, finish_features, is_finished, read_finished
from ..datasets.ranks import Ranks
from ..datasets.stores import ImageStore
from ..datasets.stream.batches import EvalBatches
from ..datasets.stream.loader import load_batches
from .backbone import Backbone, Precision

PART_ROWS = 4096
_WORD_EVERY_S = 60.0  # less than any patience of a process group

@dataclasses.dataclass(frozen=True, kw_only=True)
class Extraction:
    """How features are computed: part of the folder's identity only as far as it changes the numbers."""

    precision: Precision = "bf16"
    batch_size: int = 256
    workers: int = 1


def extract_features(
    backbone: Backbone,
    store: ImageStore,
    cache: Path,
    *,
    precision: Precision,
    batch_size: int,
    workers: int,
    device: torch.device,
    what: str,
    ranks: Ranks | None = None,
) -> FeatureFolder:
    """Returns the features of all samples of `store`, from `cache` where they are already.

    Args:
        cache: the folder that holds feature folders.
        what: name of the data, for the progress bar.
        ranks: the processes that share the work; all of them return the same folder. Another job that is making it is waited for.

    Raises:
        DataError: for an unreadable image, or features beyond float16's range.
    """
    ranks = ranks or Ranks(0, 0, 1, device)
    identity = _identity(backbone, store, precision)
    folder = cache / f"{_file_name(backbone.name)}-{sha256_json(identity)[:16]}"
    if not _is_finished_for(folder, ranks):
        folder.mkdir(parents=True, exist_ok=True)
        with _held(folder / ".lock", ranks):
            if not _is_finished_for(folder, ranks):
                how = Extraction(precision=precision, batch_size=batch_size, workers=workers)
                _make_parts(backbone.to(device), store, folder, how, ranks, what)
                ranks.barrier()
                if ranks.is_first:
                    _join_parts(folder, store, identity)
                ranks.barrier()
            if ranks.is_first:  # whoever waits for it looks at the manifest next
                (folder / ".lock").unlink(missing_ok=True)
    return read_finished(folder, identity)


def _identity(backbone: Backbone, store: ImageStore, precision: Precision) -> dict[str, Any]:
    return {
        "checkpoint": backbone.checkpoint_hash,
        "preprocessing": dataclasses.asdict(backbone.preprocessing),
        "data": store.data_hash,
        "precision": precision,
    }


def _is_finished_for(folder: Path, ranks: Ranks) -> bool:
    """Returns what rank 0 sees, on every rank."""
    return ranks.from_first(str(ranks.is_first and is_finished(folder))) == "True"


@contextlib.contextmanager
def _held(path: Path, ranks: Ranks) -> Iterator[None]:
    """Holds a lock in rank 0, which goes with its process; the others wait with it, and hear from it before they lose patience."""
    lock = filelock.FileLock(path)
    try:
        while ranks.from_first("held" if ranks.is_first and _acquired(lock) else "busy") != "held":
            pass
        yield
    finally:
        lock.release()


def _acquired(lock: filelock.BaseFileLock) -> bool:
    try:
        lock.acquire(timeout=_WORD_EVERY_S, poll_interval=0.2)
    except filelock.Timeout:
        return False
    return True


def _make_parts(backbone: Backbone, store: ImageStore, folder: Path, how: Extraction, ranks: Ranks, what: str) -> None:
    """Computes the parts that are missing (as rank 0 sees it, before any is made) and ours: every `world_size`-th of them."""
    num_parts = -(-len(store) // PART_ROWS)
    found = [part for part in range(num_parts) if not _part_path(folder, part).exists()] if ranks.is_first else []
    missing: list[int] = json.loads(ranks.from_first(json.dumps(found)))
    mine = missing[ranks.rank :: ranks.world_size]
    with Progress(len(store), f"features of {what}", enabled=ranks.is_first) as progress:
        progress.resume(len(store) - sum(_part_size(store, part) for part in missing))
        for part in mine:
            first = part * PART_ROWS
            rows = SomeRows(store, np.arange(first, first + _part_size(store, part)))
            batches = EvalBatches(rows, backbone.preprocessing.view, min(how.batch_size, len(rows)))
            computed = []
            for batch in load_batches(batches, range(len(batches)), workers=how.workers, pin=backbone.device.type == "cuda"):
                features = backbone.features(batch.images.to(backbone.device, non_blocking=True), how.precision)
                computed.append(features.cpu()[batch.valid])
                progress.advance(int(batch.valid.sum()) * ranks.world_size)
            _write_part(_part_path(folder, part), torch.cat(computed).numpy(), how.precision)


def _write_part(path: Path, features: npt.NDArray[np.float32], precision: Precision) -> None:
    stored = as_stored(features, precision, path.parent.name)
    with atomic_file(path) as file:
        np.save(file, stored)


def as_stored(features: npt.NDArray[np.float32], precision: Precision, what: str) -> Matrix:
    """Returns features in the type that they are kept in: float16 of a bf16 forward pass, else float32.

    Raises:
        DataError: for features that are not finite, or beyond float16's range; `what` they are of is named.
    """
    if not np.isfinite(features).all():
        raise DataError(f"{what}: the backbone gives features that are not finite")
    if precision == "fp32":
        return features
    with np.errstate(over="ignore"):
        stored = features.astype(np.float16)
    if not np.isfinite(stored).all():
        raise DataError(f"{what}: features reach {np.abs(features).max():.3g}, over float16's 65504; use precision=fp32")
    return stored


def alike_batches(num_samples: int, batch_size: int) -> list[tuple[range, int]]:
    """Returns stretches of a store's samples, and the size of the batches in which `extract_features` computes each of them.

    All parts but the last have the same; a row's arithmetic depends on nothing else of its batch.
    """
    last = (num_samples - 1) // PART_ROWS * PART_ROWS
    stretches = [(range(last), min(batch_size, PART_ROWS)), (range(last, num_samples), min(batch_size, num_samples - last))]
    return [(samples, size) for samples, size in stretches if len(samples)]


def _join_parts(folder: Path, store: ImageStore, identity: dict[str, Any]) -> None:
    """Writes features.npy from the parts, block by block, then labels.npy, then the manifest; then the parts go."""
    parts = [_part_path(folder, part) for part in range(-(-len(store) // PART_ROWS))]
    first = np.load(parts[0], mmap_mode="r", allow_pickle=False)
    shape = (len(store), first.shape[1])
    with atomic_file(folder / FEATURES_NAME) as file:
        header = {"descr": numpy.lib.format.dtype_to_descr(first.dtype), "fortran_order": False, "shape": shape}
        numpy.lib.format.write_array_header_1_0(file, header)
        for path in parts:
            file.write(np.load(path, allow_pickle=False).tobytes())
    versions = {"torch": torch.__version__, "timm": timm.__version__, "python": platform.python_version()}
    finish_features(folder, np.asarray(store.labels, np.int64), store.class_names, identity, versions)
    for path in parts:
        path.unlink()


class SomeRows:
    """The samples int64[N] of a store, as a store."""

    def __init__(self, store: ImageStore, samples: npt.NDArray[np.int64]) -> None:
        self._store, self._samples = store, samples
        self.labels = store.labels[samples]
        self.class_names, self.data_hash = store.class_names, store.data_hash

    def __len__(self) -> int:
        return len(self._samples)

    def load(self, sample: int) -> torch.Tensor:
        """As the store."""
        return self._store.load(int(self._samples[sample]))

    def name(self, sample: int) -> str:
        """As the store."""
        return self._store.name(int(self._samples[sample]))


def _part_path(folder: Path, part: int) -> Path:
    return folder / f"part-{part:06d}.npy"


def _part_size(store: ImageStore, part: int) -> int:
    return min(PART_ROWS, len(store) - part * PART_ROWS)


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name).replace(os.sep, "-")[:60]
