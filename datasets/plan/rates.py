"""The weight column of a plan, compiled: how often each sample is taken in an epoch on average.

    FOLDER/
        rates.npy    uint32[N]      rate of each sample in units of 2⁻²⁴, so from 0 to 255 visits an epoch
        starts.npy   int64[S + 1]   sums of the rates before each shard; the last is a whole number of epoch samples · 2²⁴
        groups.npy   int32[G, 2]    where an epoch reads only some of the shards: see groups.py
        second-*.npy                the same files of a second column, where every second epoch draws by one of its own
        members-*.npy               the same of 1 or 0, where pairs of coupled epochs see only a part of the samples
        rates.json   format, version, number of samples, samples an epoch, SHA-256 of rates.npy and of the last three's, how it was made

Rows are read by shard when their shard comes into use; no process holds the column. Version 1 is a column alone; one with more is of
version 2, so that no older Bamboo overlooks it.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...cli.errors import DataError
from ..atomic import sha256_file

ONE = 1 << 24
MAX_RATE = 255

FORMAT, VERSIONS = "bamboo-rates", (1, 2)
RATES_NAME, STARTS_NAME, GROUPS_NAME, CARD_NAME = "rates.npy", "starts.npy", "groups.npy", "rates.json"
SECOND = "second-"
"""What the names of the second column's files begin with."""
MEMBERS = "members-"
"""The same of the membership of coupled epochs."""

Groups = npt.NDArray[np.int32]
"""int32[G, 2] how many consecutive shards a group has, and how many of them an epoch reads."""


@dataclasses.dataclass(frozen=True, eq=False)
class Rates:
    """A compiled weight column on disk; picklable by its folder, `starts` travels with it."""

    folder: Path
    starts: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    """int64[S + 1] samples before each shard."""
    data_offset: int
    """Where the values begin in the file."""
    groups: Groups | None = None
    """None: every shard that has rates above 0 is read in every epoch."""
    second: "Rates | None" = None
    """What every second epoch draws by; None: the same."""
    members: "Rates | None" = None
    """1 for every sample that a pair of coupled epochs sees, 0 for the others, whose rates are 0 too; None: it sees all."""
    prefix: str = ""
    """What the names of its files begin with."""

    @property
    def epoch_samples(self) -> int:
        """Samples drawn an epoch by this column."""
        return int(self.starts[-1]) // ONE

    @property
    def path(self) -> Path:
        """Where its values lie."""
        return self.folder / f"{self.prefix}{RATES_NAME}"

    def of_shard(self, shard: int) -> npt.NDArray[np.uint32]:
        """Returns uint32[n] rates of the rows of one shard.

        Raises:
            DataError: when the file ends before them.
        """
        path = self.path
        start, stop = self.rows[shard : shard + 2].tolist()
        values = np.fromfile(path, np.uint32, stop - start, offset=self.data_offset + 4 * start)
        if len(values) != stop - start:
            raise DataError(f"{path}: truncated: rates of samples {start} to {stop} are missing")
        return values

    def of_rows(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
        """Returns uint32[n] rates of any rows, each read by itself: of a map a kernel may make two megabytes resident for a row.

        Raises:
            DataError: when the file ends before one of them.
        """
        path = self.path
        with path.open("rb", buffering=0) as file:
            values = b"".join(os.pread(file.fileno(), 4, self.data_offset + 4 * row) for row in rows.tolist())
        if len(values) != 4 * len(rows):
            raise DataError(f"{path}: truncated: rates of some samples up to {rows.max()} are missing")
        return np.frombuffer(values, np.uint32)


def open_rates(folder: Path, shard_counts: npt.NDArray[np.int64], *, verify: bool = False) -> Rates:
    """Returns the compiled weight column in `folder`; `verify` also compares its hash, at a second a gigabyte.

    Raises:
        DataError: when it is missing, damaged, or of other shards than `shard_counts`, int64[S].
    """
    try:
        card = json.loads((folder / CARD_NAME).read_bytes())
        if card["format"] != FORMAT or card["version"] not in VERSIONS:
            known = " or ".join(map(str, VERSIONS))
            raise DataError(f"{folder}: format {card['format']} version {card['version']}; this Bamboo reads {FORMAT} version {known}")
        hashes = {RATES_NAME: str(card["sha256"]), **(card["files"] if card["version"] > 1 else {})}
        rows = np.concatenate([[0], np.cumsum(shard_counts)]).astype(np.int64)
        others = {prefix: _open_column(folder, prefix, hashes, rows) for prefix in (SECOND, MEMBERS) if prefix + RATES_NAME in hashes}
        first = _open_column(folder, "", hashes, rows)
        rates = dataclasses.replace(first, second=others.get(SECOND), members=others.get(MEMBERS))
        for name, sha256 in hashes.items():
            if (verify or not name.endswith(RATES_NAME)) and sha256_file(folder / name) != sha256:  # all but the rates are small
                raise DataError(f"{folder / name}: altered since it was compiled; remove the folder, and it is made again from its weights")
        return rates
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder}: no readable weight column ({type(error).__name__}: {error}); it is made again when removed") from None


def _open_column(folder: Path, prefix: str, hashes: dict[str, str], rows: npt.NDArray[np.int64]) -> Rates:
    starts = np.load(folder / f"{prefix}{STARTS_NAME}", allow_pickle=False)
    path = folder / f"{prefix}{RATES_NAME}"
    data_offset = _data_offset(path)
    num_samples = (path.stat().st_size - data_offset) / 4
    if num_samples != rows[-1] or starts.shape != rows.shape:
        raise DataError(f"{folder}: a weight column of {num_samples:.0f} samples in {len(starts) - 1} shards; the data has others")
    groups = np.load(folder / f"{prefix}{GROUPS_NAME}", allow_pickle=False) if prefix + GROUPS_NAME in hashes else None
    return Rates(folder, starts.astype(np.int64), rows, data_offset, groups, prefix=prefix)


def read_card(folder: Path) -> dict[str, Any] | None:
    """Returns the `rates.json` of a weight column, None where there is none that can be read."""
    try:
        card = json.loads((folder / CARD_NAME).read_bytes())
    except (OSError, ValueError):
        return None
    known = isinstance(card, dict) and card.get("format") == FORMAT and card.get("version") in VERSIONS
    return card if known else None


def write_card(folder: Path, num_samples: int, epoch_samples: int, made_by: dict[str, Any]) -> None:
    """Writes `rates.json` beside the finished columns; `epoch_samples` of two that are drawn by is the mean, rounded up."""
    names = sorted(path.name for prefix in (SECOND, MEMBERS) for path in folder.glob(f"{prefix}*.npy"))
    names += [GROUPS_NAME] if (folder / GROUPS_NAME).exists() else []
    card: dict[str, Any] = {"format": FORMAT, "version": 2 if names else 1, "num_samples": num_samples, "epoch_samples": epoch_samples}
    card |= {"sha256": sha256_file(folder / RATES_NAME)}
    card |= {"files": {name: sha256_file(folder / name) for name in names}} if names else {}
    (folder / CARD_NAME).write_text(json.dumps({**card, "made_by": made_by}, indent=1) + "\n")


def _data_offset(path: Path) -> int:
    """Returns where the values of an .npy file of uint32 begin."""
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = reader(file)
        if len(shape) != 1 or dtype != np.uint32:
            raise DataError(f"{path}: holds {dtype} of shape {shape}, not a column of uint32")
        return file.tell()
