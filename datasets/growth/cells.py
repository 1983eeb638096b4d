"""The cells that an inverted file sorts codes into: each the neighbourhood of a centroid, found by k-means on the sphere.

Growth begins with a single cell, that is with exact search. Whenever the index has become four times as large, cells are made anew, about
7 √N of them, from codes of the whole index: so their number, and with it what a search costs, goes with √N, and no cell outgrows
the others. Everything is in whole numbers (see `codes`), so the same codes make the same cells anywhere.

Letters: N codes, D width, C cells, B rows of a block, P cells probed.
"""

import math

import numpy as np
import numpy.typing as npt
import torch

from ..counters import key, permute
from .codes import GRID, Codes, gridded

EXACT_BELOW = 4096
"""Samples of the index up to which there is one cell."""
GROWTH = 4
"""By how much the index grows before cells are made anew."""
CODES_PER_CELL = 16
"""Codes that k-means looks at."""

_STEPS = (4, 4, 2, 1)  # of the rounds of k-means: where centroids are still far off, every fourth code will do
_CELLS = 0x43454C4C
_TILE = 512
_SUMMED = 1 << 14


def num_cells(num_codes: int) -> int:
    """Returns how many cells an index of so many codes is divided into: the power of two nearest to 5 √(2 N), or one."""
    return 1 if num_codes < EXACT_BELOW else 2 ** round(math.log2(5 * math.sqrt(2 * num_codes)))


class Cells:
    """Centroids, float16[C, D]; `nearest` says which of them are."""

    def __init__(self, centroids_CD: Codes) -> None:
        self.centroids = centroids_CD
        self._away_DC = np.ascontiguousarray(-gridded(centroids_CD).T)

    def __len__(self) -> int:
        return len(self.centroids)

    def nearest(self, codes_BD: Codes, num_probes: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Returns (int64[B, P] the nearest cells of each code, the nearest first, float32[B, P] their cosines); P is at most C."""
        count = min(num_probes, len(self))
        if len(self) == 1:
            return np.zeros((len(codes_BD), 1), np.int64), np.ones((len(codes_BD), 1), np.float32)
        tiles = [self._nearest(codes_BD[start : start + _TILE], count) for start in range(0, len(codes_BD), _TILE)]
        cells, cosines = [np.zeros((0, count), np.int64)], [np.zeros((0, count), np.float32)]
        return np.concatenate(cells + [tile[0] for tile in tiles]), np.concatenate(cosines + [tile[1] for tile in tiles])

    def _nearest(self, codes_BD: Codes, num_probes: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        away_BC = gridded(codes_BD) @ self._away_DC
        chosen = _first(away_BC, num_probes) if num_probes > 1 else away_BC.argmin(1)[:, None]  # the first of equally near ones
        return chosen, np.take_along_axis(away_BC, chosen, 1) / np.float32(-(GRID**2))


def _first(away_BC: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.int64]:
    """Returns int64[B, count] the columns of the least values, the least first, of equal ones that of the smaller number."""
    if count == away_BC.shape[1]:
        return away_BC.argsort(axis=1, kind="stable")
    parted = away_BC.argpartition(count - 1, axis=1)
    chosen, limit_B1 = parted[:, :count], np.take_along_axis(away_BC, parted[:, count - 1 : count], 1)
    ties = np.flatnonzero(np.count_nonzero(away_BC <= limit_B1, axis=1) > count)  # which of equal ones a partition takes is arbitrary
    for row in ties.tolist():
        chosen[row] = away_BC[row].argsort(kind="stable")[:count]
    chosen.sort(axis=1)
    order = np.take_along_axis(away_BC, chosen, 1).argsort(axis=1, kind="stable")
    return np.take_along_axis(chosen, order, 1)


def one_cell(width: int) -> Cells:
    """Returns the single cell of an index that is searched exactly."""
    return Cells(np.zeros((1, width), np.float16))


def sample_rows(num_codes: int, seed: int) -> npt.NDArray[np.int64]:
    """Returns, sorted, the places of the codes that k-means is to look at in an index of `num_codes`."""
    wanted = min(CODES_PER_CELL * num_cells(num_codes), num_codes)
    return np.sort(permute(np.arange(wanted), num_codes, key(seed, _CELLS, num_codes)))


def make_cells(codes_ND: Codes, count: int) -> Cells:
    """Returns `count` cells of the codes: k-means by cosine, from codes in even steps through them as the first centroids.

    A centroid that no code is nearest to stays where it is. Cells are numbered by neighbourhoods of √C of them, so that codes that are
    searched in the order of their cells find in the processor's cache what the one before has scanned.
    """
    centroids = _means(codes_ND, count)
    around = _means(centroids, max(math.isqrt(count), 1))
    return Cells(centroids[Cells(around).nearest(centroids, 1)[0][:, 0].argsort(kind="stable")])


def _means(codes_ND: Codes, count: int) -> Codes:
    cells = Cells(codes_ND[np.linspace(0, len(codes_ND) - 1, count).astype(np.int64)])
    for step in _STEPS:
        sums = torch.zeros(count, codes_ND.shape[1], dtype=torch.int64)
        for start in range(0, len(codes_ND), step * _SUMMED):
            codes = codes_ND[start : start + step * _SUMMED : step]
            sums.index_add_(0, torch.from_numpy(cells.nearest(codes, 1)[0][:, 0]), torch.from_numpy(gridded(codes)).long())
        sums_CD = sums.numpy()
        lengths = np.sqrt(np.square(sums_CD.astype(np.float64)).sum(1, keepdims=True))
        cells = Cells(np.where(lengths > 0, (sums_CD / np.maximum(lengths, 1)).astype(np.float16), cells.centroids))
    return cells.centroids
