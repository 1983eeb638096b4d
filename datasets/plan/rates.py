"""The weight column of a plan, compiled: how often each sample is taken in an epoch on average.

    FOLDER/
        rates.npy    uint32[N]      rate of each sample in units of 2⁻²⁴, so from 0 to 255 visits an epoch
        starts.npy   int64[S + 1]   sums of the rates before each shard; the last is a whole number of epoch samples · 2²⁴
        rates.json   format, version, number of samples and shards, samples an epoch, SHA-256 of the two, how it was made

Rows are read by shard when their shard comes into use; no process holds the column.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...cli.errors import DataError
from ..atomic import sha256_file

ONE = 1 << 24
MAX_RATE = 255

FORMAT, VERSION = "bamboo-rates", 1
RATES_NAME, STARTS_NAME, CARD_NAME = "rates.npy", "starts.npy", "rates.json"


@dataclasses.dataclass(frozen=True, eq=False)
class Rates:
    """A compiled weight column on disk; picklable by its folder, `starts` travels with it."""

    folder: Path
    starts: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    """int64[S + 1] samples before each shard."""
    data_offset: int
    """Where the values begin in the file."""

    @property
    def epoch_samples(self) -> int:
        """Samples drawn an epoch."""
        return int(self.starts[-1]) // ONE

    def of_shard(self, shard: int) -> npt.NDArray[np.uint32]:
        """Returns uint32[n] rates of the rows of one shard.

        Raises:
            DataError: when the file ends before them.
        """
        path = self.folder / RATES_NAME
        start, stop = self.rows[shard : shard + 2].tolist()
        values = np.fromfile(path, np.uint32, stop - start, offset=self.data_offset + 4 * start)
        if len(values) != stop - start:
            raise DataError(f"{path}: truncated: rates of samples {start} to {stop} are missing")
        return values


def open_rates(folder: Path, shard_counts: npt.NDArray[np.int64], *, verify: bool = False) -> Rates:
    """Returns the compiled weight column in `folder`; `verify` also compares its hash, at a second a gigabyte.

    Raises:
        DataError: when it is missing, damaged, or of other shards than `shard_counts`, int64[S].
    """
    try:
        card = json.loads((folder / CARD_NAME).read_bytes())
        if (card["format"], card["version"]) != (FORMAT, VERSION):
            raise DataError(f"{folder}: format {card['format']} version {card['version']}; this Bamboo reads {FORMAT} version {VERSION}")
        starts = np.load(folder / STARTS_NAME, allow_pickle=False)
        num_bytes, data_offset = (folder / RATES_NAME).stat().st_size, _data_offset(folder / RATES_NAME)
        expected = data_offset + 4 * int(card["num_samples"])
        altered = verify and sha256_file(folder / RATES_NAME) != card["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: no readable weight column ({type(error).__name__}: {error}); it is made again when removed") from None
    rows = np.concatenate([[0], np.cumsum(shard_counts)]).astype(np.int64)
    if num_bytes != expected or starts.shape != rows.shape or card["num_samples"] != rows[-1]:
        raise DataError(f"{folder}: a weight column of {card['num_samples']} samples in {len(starts) - 1} shards; the data has others")
    if altered:
        raise DataError(f"{folder / RATES_NAME}: altered since it was compiled; remove the folder, and it is made again from its weights")
    return Rates(folder, starts.astype(np.int64), rows, data_offset)


def read_card(folder: Path) -> dict[str, Any] | None:
    """Returns the `rates.json` of a weight column, None where there is none that can be read."""
    try:
        card = json.loads((folder / CARD_NAME).read_bytes())
    except (OSError, ValueError):
        return None
    return card if isinstance(card, dict) and (card.get("format"), card.get("version")) == (FORMAT, VERSION) else None


def write_card(folder: Path, num_samples: int, epoch_samples: int, made_by: dict[str, Any]) -> None:
    """Writes `rates.json` beside the finished columns."""
    sha256 = sha256_file(folder / RATES_NAME)
    card = {"format": FORMAT, "version": VERSION, "num_samples": num_samples, "epoch_samples": epoch_samples, "sha256": sha256}
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
