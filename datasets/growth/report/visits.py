"""How often an epoch is expected to take the samples of a snapshot, read chunk by chunk from its probability columns.

Letters: n samples of a chunk.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ....cli.errors import DataError, UserError
from ...shards import Shards
from ..folders import local_folders
from ..snapshot import Snapshot, TrainingFolder
from .pictures import Labels, Pictures

Visits = npt.NDArray[np.float64]

_CHUNK = 1 << 20


def chunks(snapshot: Snapshot, pictures: Pictures) -> Iterator[tuple[Labels | None, Visits, Visits | None]]:
    """Yields, of all that is trained from, (classes, visits of the first, third, … epoch, those of the others): int[n], float64[n] twice.

    Classes are None where they are not known, other visits None where they are as the first. After a coupled epoch comes what it left over.

    Raises:
        DataError: when a column is missing or damaged.
    """
    for folder in snapshot.training:
        labels, column = _labels(folder, snapshot, pictures), _column(folder.probabilities, folder)
        other = None if folder.second is None else _column(folder.second, folder)
        for start in range(0, folder.num_samples, _CHUNK):
            rows = slice(start, min(start + _CHUNK, folder.num_samples))
            first = column[rows].astype(np.float64)
            second = None if other is None else other[rows].astype(np.float64)
            if snapshot.coupled:
                second = (np.ones_like(first) if second is None else second) - first
            yield None if labels is None else labels[rows], first, second


def greatest(snapshot: Snapshot) -> float:
    """Returns the greatest visits of any sample; 1 at least. Errors as `chunks`."""
    paths = [(path, folder) for folder in snapshot.training for path in (folder.probabilities, folder.second) if path is not None]
    return max([1.0, *(float(_column(path, folder).max(initial=0)) for path, folder in paths)])


def _labels(folder: TrainingFolder, snapshot: Snapshot, pictures: Pictures) -> Labels | None:
    """Returns the classes of a folder: of a source, or of shards packed anew by gain."""
    for number, source in enumerate(snapshot.sources):
        if source.data_hash == folder.data_hash:
            return pictures.labels[number]
    try:
        return Shards.open(local_folders([folder], "--report")[0]).labels
    except (UserError, DataError, OSError):
        return None


def _column(path: Path, folder: TrainingFolder) -> npt.NDArray[np.float32]:
    try:
        column: npt.NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not a readable .npy file: {' '.join(str(error).split())}") from None
    if column.shape != (folder.num_samples,) or column.dtype != np.float32:
        raise DataError(f"{path}: damaged: must hold {folder.num_samples:,} float32 numbers")
    return column
