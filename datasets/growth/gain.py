"""Causal gain: how far a sample is from what was there before it (InfoGrowth, arXiv 2405.18347, `Gain_info`).

    gain(x) = mean over the k nearest y, y of the index and earlier than x, of 1 - cos(x, y);   1 for the first of all

It is a pure function of the order of arrival: samples come in blocks, each of which enters the index as a whole, and then of what is near
to a sample only that counts which came before it. So near-duplicates that arrive together see each other.

Letters: B samples of a block, D width, k neighbours.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .lists import Ids, Neighbours

Floats = npt.NDArray[np.float32]

_LEAST_BLOCK, _MOST_BLOCK, _BLOCK_SHARE = 128, 16384, 16


def block_rows(arrived: int) -> int:
    """Returns how many samples make the next block after so many: a power of two, at most a sixteenth of them, 128 to 16,384."""
    return min(max(1 << max((arrived // _BLOCK_SHARE).bit_length() - 1, 0), _LEAST_BLOCK), _MOST_BLOCK)


class Gains(NamedTuple):
    """What is known of each sample of a block: gain and nearest distance float32[B], the ids of the nearest int64[B, k], -1: none."""

    gain: Floats
    nearest_distance: Floats
    neighbours: Ids


def gains_of(found: Neighbours) -> Gains:
    """Returns gain and nearest distance by the neighbours found."""
    distances = np.clip(1 - found.cosines.astype(np.float64), 0, 2)
    is_there = found.ids >= 0
    counts = is_there.sum(1)
    sums = np.where(is_there, distances, 0).sum(1)
    gain = np.where(counts > 0, sums / np.maximum(counts, 1), 1.0)
    nearest = np.where(counts > 0, distances[:, 0], np.nan)
    return Gains(gain.astype(np.float32), nearest.astype(np.float32), found.ids)
