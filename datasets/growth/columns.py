"""What growth says of every sample, column by column; one parquet file beside each tar holds the rows of that tar.

Letters: N samples of a shard folder, in the order of its index. Ids of samples are **arrivals**: their place in the order in which the
state met them, through all its shard folders, from 0.
"""

import enum
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet

from ...cli.errors import DataError
from ..atomic import atomic_file

Column = npt.NDArray[Any]
Columns = dict[str, Column]


class Decision(enum.IntEnum):
    """What becomes of a sample. All but the dropped ones enter the index, and so count as neighbours of later ones."""

    ACCEPT = 0
    """It is as it came."""
    CLEAN = 1
    """Its caption did not fit its image and was replaced by its re-caption, which does."""
    DUPLICATE = 2
    """An earlier sample lies within the duplicate distance."""
    DROP = 3
    """Its caption does not fit its image, and neither does its re-caption, where it has one."""


class Reason(enum.IntEnum):
    """Why."""

    NEW = 0
    RECAPTIONED = 1
    NEAR_DUPLICATE = 2
    MISALIGNED = 3
    MISALIGNED_TWICE = 4


REASONS = {
    Reason.NEW: "no earlier sample within the duplicate distance",
    Reason.RECAPTIONED: "its caption did not fit its image; its re-caption does",
    Reason.NEAR_DUPLICATE: "an earlier sample lies within the duplicate distance",
    Reason.MISALIGNED: "its caption does not fit its image, and it has no re-caption",
    Reason.MISALIGNED_TWICE: "neither its caption nor its re-caption fits its image",
}

CAUSAL = pa.schema(
    [
        ("arrival", pa.int64()),
        ("key_hash", pa.uint64()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("image_gain", pa.float32()),
        ("text_gain", pa.float32()),
        ("image_nearest_distance", pa.float32()),
        ("image_nearest", pa.int64()),
        ("text_nearest_distance", pa.float32()),
        ("text_nearest", pa.int64()),
        ("alignment", pa.float32()),
        ("realigned", pa.float32()),
        ("label_entropy", pa.float32()),
        ("decision", pa.uint8()),
        ("reason", pa.uint8()),
    ]
)
"""Columns that depend on earlier samples alone, written once. Distances are cosine distances in [0, 2]; NaN and -1: not known.

    key_hash, offset, size    as in index.arrow
    image_gain, text_gain     mean distance to the k nearest earlier samples of the index; 1 for the first of all
    *_nearest_distance        distance to the nearest of them, whose arrival is *_nearest
    alignment, realigned      cosine of image and caption, and of image and re-caption
    label_entropy             share of the k nearest whose class is another
"""

SETTLED = pa.schema([("image_settled", pa.float32()), ("text_settled", pa.float32()), ("gain", pa.float32()), ("corrected", pa.float32())])
"""Columns of a snapshot, which change as more samples arrive.

    image_settled, text_settled   mean distance to the k nearest of all other samples of the index; NaN where not asked for
    gain, corrected               image_gain and text_gain combined, and with the drift of their arrival taken out
"""


def write_columns(path: Path, columns: Mapping[str, Column], schema: pa.Schema) -> None:
    """Writes columns as a parquet file, atomically."""
    table = pa.table({field.name: pa.array(columns[field.name], field.type) for field in schema}, schema=schema)
    with atomic_file(path) as file:
        pa.parquet.write_table(table, file, compression="zstd")


def read_columns(path: Path, schema: pa.Schema) -> Columns:
    """Returns the columns of a parquet file.

    Raises:
        DataError: when it is missing, damaged, or of other columns.
    """
    try:
        table = pa.parquet.read_table(path, memory_map=True)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: cannot be read as parquet ({' '.join(str(error).split())})") from None
    if table.schema.names != schema.names or table.schema.types != schema.types:
        raise DataError(f"{path}: holds columns {', '.join(table.schema.names)}; expected {', '.join(schema.names)}")
    return {name: table[name].to_numpy() for name in schema.names}


def join_columns(parts: list[Columns], schema: pa.Schema) -> Columns:
    """Returns the columns of several files, one after another."""
    empty = {field.name: np.zeros(0, field.type.to_pandas_dtype()) for field in schema}
    return {name: np.concatenate([empty[name], *(part[name] for part in parts)]) for name in schema.names}
