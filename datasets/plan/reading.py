"""How much an epoch reads and how much of it is used: shards are read whole, by whoever opens them, for the samples that are taken."""

from typing import NamedTuple

import numpy as np

from ..index import Index
from .drawing import Ids
from .groups import shares_read
from .rates import ONE, Rates


class Reading(NamedTuple):
    """Expected bytes of an epoch."""

    read_bytes: float
    """Of the shards that give a sample, whole."""
    used_bytes: float
    """Of the samples taken, each with its share of its shard's tar headers and captions, as often as it is taken."""

    @property
    def amplification(self) -> float:
        """Bytes read for every byte used."""
        return self.read_bytes / self.used_bytes


def predicted_reading(rates: Rates, shard_bytes: Ids, index: Index) -> Reading:
    """Returns what an epoch that draws by these rates reads and uses on average; where there is a second column, over both.

        read = Σ_s P(s gives a sample) · bytes_s        used = Σ_s bytes_s · (Σ_i rate_i · size_i) / Σ_i size_i,  i of shard s

    Each shard counts once an epoch, as a node with the cache of docs/streaming.md fetches it. Reads the rates once, shard by shard.

    Args:
        shard_bytes: int64[S] size of each tar.
        index: of the same samples.

    Raises:
        DataError: when the weight column is truncated.
    """
    columns = [rates] if rates.second is None else [rates, rates.second]
    read = sum(float(shares_read(np.diff(column.starts), column.groups) @ shard_bytes) for column in columns)
    used = sum(_used_bytes(column, shard_bytes, index) for column in columns)
    return Reading(read / len(columns), used / len(columns))


def _used_bytes(rates: Rates, shard_bytes: Ids, index: Index) -> float:
    total = 0.0
    for shard in np.flatnonzero(np.diff(rates.starts)).tolist():
        start, stop = rates.rows[shard : shard + 2].tolist()
        sizes = index.size[start:stop]
        total += float(shard_bytes[shard]) * float(rates.of_shard(shard) / ONE @ sizes) / float(sizes.sum())
        index.give_back()
    return total
