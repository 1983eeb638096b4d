"""Settled gain: the mean distance to the k nearest of all other samples, earlier and later, so free of the drift of arrival.

It is computed anew for every snapshot, since every arrival may change any of them.
"""

import numpy as np
import numpy.typing as npt

from ...cli.progress import Progress
from ..ranks import Ranks
from .gain import gains_of
from .growing import Memory
from .lists import Neighbours, top

_LAST = np.iinfo(np.int64).max


def settled_gains(memory: Memory, k: int, ranks: Ranks) -> dict[str, npt.NDArray[np.float32]]:
    """Returns float32[N] settled gains of all arrivals by modality; NaN for those that are not in the index."""
    return {name: _settled(memory, name, k, ranks) for name in memory.indexes}


def _settled(memory: Memory, modality: str, k: int, ranks: Ranks) -> npt.NDArray[np.float32]:
    index, codebook = memory.indexes[modality], memory.codebooks[modality]
    gains = np.full(memory.arrived, np.nan, np.float32)
    with Progress(len(codebook), f"settled gains of {modality}", "samples", enabled=ranks.is_first) as progress:
        for codes_BD, arrivals_B in codebook.blocks():
            near = index.search(codes_BD, k + 1, np.full(len(arrivals_B), _LAST))
            is_itself = near.ids == arrivals_B[:, None]
            others = Neighbours(np.where(is_itself, -np.inf, near.cosines).astype(np.float32), np.where(is_itself, -1, near.ids))
            gains[arrivals_B] = gains_of(top(others.cosines, others.ids, k)).gain
            progress.advance(len(arrivals_B))
    return gains
