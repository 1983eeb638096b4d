"""The validation split: official, or stratified and seeded, the same on every machine, and stored with the results."""

import dataclasses
import hashlib
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..datasets.atomic import write_bytes

Indices = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Row numbers on both sides, ascending; rows without a label are on neither."""

    train: Indices
    val: Indices

    @property
    def digest(self) -> str:
        """Hex SHA-256 over both sides (little-endian int64, lengths first)."""
        return digest_of(self.train, self.val)


def write_split(path: Path, rows: Indices, split: Split | None) -> None:
    """Writes the training rows in use as one .npz file, atomically: `rows`, `rows_digest`, and of a split `train`, `val`, `digest`."""
    buffer, kept = io.BytesIO(), {"rows": rows, "rows_digest": np.array(digest_of(rows))}
    if split is not None:
        kept |= {"train": split.train, "val": split.val, "digest": np.array(split.digest)}
    np.savez_compressed(buffer, **kept)  # type: ignore[arg-type]  # numpy's stub sees its own keyword in any name
    write_bytes(path, buffer.getvalue())


def stratified_split(labels: npt.NDArray[np.int64], fraction: float, seed: int) -> Split:
    """Returns a split whose validation side has round(fraction · n) of the rows that can be spared, class by class.

    Every class's quota is fraction · n_c, rounded by largest remainder (equal remainders: lower class id first); a class of two rows or
    more keeps at least one on each side, a class of one row trains. Inside a class the rows with the smallest random numbers validate:
    raw 64-bit output of Philox keyed by `seed`, one number per row, which numpy guarantees to be the same for all versions and platforms.

    Args:
        labels: int64[N]; rows with a negative label are left out.
        fraction: in (0, 1).
        seed: ≥ 0.

    Raises:
        ValueError: for a fraction out of range, or no class with two rows.
    """
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"fraction={fraction}: must lie between 0 and 1")
    keys = np.random.Philox(key=seed).random_raw(len(labels))
    classes, counts = np.unique(labels[labels >= 0], return_counts=True)
    quotas = _largest_remainder(counts, fraction)
    if not quotas.any():
        raise ValueError("no class has two rows: nothing can be held out for validation")
    chosen = [_smallest(np.flatnonzero(labels == label), keys, quota) for label, quota in zip(classes, quotas, strict=True)]
    val = np.sort(np.concatenate(chosen)).astype(np.int64)
    train = np.setdiff1d(np.flatnonzero(labels >= 0), val, assume_unique=True).astype(np.int64)
    return Split(train, val)


def official_split(labels: npt.NDArray[np.int64], validation_rows: npt.NDArray[np.int64]) -> Split:
    """Returns the split that a set comes with; rows with a negative label are on neither side.

    Args:
        labels: int64[N].
        validation_rows: int64[V] row numbers, in any order.

    Raises:
        ValueError: for row numbers out of range or given twice, a side without a labelled row, or a class that would validate only.
    """
    chosen = np.unique(validation_rows)
    if len(chosen) != len(validation_rows):
        raise ValueError("a validation row is given twice")
    if len(chosen) and not 0 <= int(chosen[0]) <= int(chosen[-1]) < len(labels):
        raise ValueError(f"validation rows from {chosen[0]} to {chosen[-1]}: must be in [0, {len(labels)})")
    held = np.zeros(len(labels), bool)
    held[chosen] = True
    val, train = np.flatnonzero(held & (labels >= 0)), np.flatnonzero(~held & (labels >= 0))
    if not len(val) or not len(train):
        raise ValueError(f"{len(train)} labelled rows train and {len(val)} validate: both must be above 0")
    alone = np.setdiff1d(labels[val], labels[train])
    if len(alone):
        raise ValueError(f"classes {alone[:5].tolist()} have validation rows only")
    return Split(train.astype(np.int64), val.astype(np.int64))


def digest_of(*sides: Indices) -> str:
    """Returns the hex SHA-256 over row numbers (little-endian int64, the length of each side before it)."""
    digest = hashlib.sha256()
    for side in sides:
        digest.update(len(side).to_bytes(8, "little"))
        digest.update(side.astype("<i8").tobytes())
    return digest.hexdigest()


def _smallest(rows: Indices, keys: npt.NDArray[np.uint64], quota: int) -> Indices:
    return rows[np.argsort(keys[rows], kind="stable")[:quota]]


def _largest_remainder(counts: npt.NDArray[np.int64], fraction: float) -> npt.NDArray[np.int64]:
    """Returns how many rows of each class validate: between 1 and n_c − 1 where n_c ≥ 2, else 0."""
    exact = np.where(counts >= 2, counts * fraction, 0.0)
    least, most = np.where(counts >= 2, 1, 0), np.maximum(counts - 1, 0)
    quotas = np.clip(np.floor(exact).astype(np.int64), least, most)
    missing = int(np.floor(exact.sum() + 0.5)) - int(quotas.sum())
    for at in np.argsort(-(exact - np.floor(exact)), kind="stable"):
        if missing > 0 and quotas[at] < most[at] and quotas[at] <= exact[at]:
            quotas[at] += 1
            missing -= 1
    return quotas
