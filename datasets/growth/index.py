"""The index of neighbours that a dataset grows with: cells shared out over ranks, each of which holds and searches its own.

Rank r of W owns the cells c ≡ r mod W. All ranks hand in the same codes in the same order; each chooses the cells of every W-th tile of
them and tells the others, searches those of its own cells, and tells the others what it found. A cell is always searched whole by one
rank, and everything else is exact (see `codes`), so any number of ranks finds the same, bit for bit.

Letters: B codes of a block, D width, P cells probed, k neighbours, W ranks.
"""

import functools
import itertools
import operator
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from ..ranks import Ranks
from .cells import EXACT_BELOW, GROWTH, Cells, make_cells, num_cells, one_cell, sample_rows
from .codes import Codes
from .lists import FaissLists, Ids, Lists, Neighbours, TorchLists, top

MOST_PROBES = 64
MARGIN = 0.25
"""Cells whose centroid is further than this below the nearest one's cosine are not searched, ..."""
LEAST = 256
"""... unless nearer ones hold fewer codes than this together."""

_TILE = 128


class CodeStore(Protocol):
    """All codes that an index holds, in the order in which it took them, as they lie on the disk."""

    def __len__(self) -> int: ...

    def rows(self, places: Ids) -> Codes:
        """Returns the codes at sorted places, float16[n, D]."""

    def blocks(self) -> Iterator[tuple[Codes, Ids]]:
        """Yields (codes, ids) of one stretch after another."""

    def newest_cells(self) -> tuple[int, Codes] | None:
        """Returns (how many codes there were, centroids) of the cells that were made last."""

    def keep_cells(self, centroids: Codes) -> None:
        """Keeps cells that were made of all codes there are."""


class NeighbourIndex(Protocol):
    """Codes among which neighbours are found. All ranks make the same calls with the same codes."""

    @property
    def num_cells(self) -> int:
        """Cells at present; with 1 the search is exact."""

    def take(self, codes_BD: Codes, ids_B: Ids, k: int) -> Neighbours:
        """Takes a block of codes, and returns the k nearest of each among those that came before it; ids rise from code to code."""

    def search(self, codes_BD: Codes, k: int, before_B: Ids) -> Neighbours:
        """Returns the k nearest of the codes that were taken whose ids are less than `before`."""

    def settle(self, store: CodeStore) -> None:
        """Is told what has been taken, between blocks: the moment to make cells anew, and to take everything where nothing is held yet."""


class CellIndex:
    """Inverted file; exact while it is small.

    Args:
        width: D.
        effort: cells are searched, the nearest first and at most 64, until they hold so many codes together; 0: all codes are compared.
            A number of codes and not of cells, since it is that which a search costs, and in data of uneven density what finds neighbours.
        seed: keys the choice of codes that k-means looks at.
        make_lists: (D, number of cells) → empty lists; None: faiss on a CPU, PyTorch on a GPU.
    """

    def __init__(self, width: int, ranks: Ranks, effort: int, seed: int, make_lists: Callable[[int, int], Lists] | None = None) -> None:
        self._width, self._ranks, self._effort, self._seed = width, ranks, effort, seed
        self._make_lists = make_lists or _lists_for(ranks.device)
        self._made_at, self._cells = 0, one_cell(width)
        self._empty()

    def _empty(self) -> None:
        self._size, self._held = 0, np.zeros(len(self._cells), np.int64)
        self._lists = self._make_lists(self._width, len(self._cells))

    @property
    def num_cells(self) -> int:
        """Cells at present; with 1 the search is exact."""
        return len(self._cells)

    def take(self, codes_BD: Codes, ids_B: Ids, k: int) -> Neighbours:
        """Takes a block of codes, and returns the k nearest of each among those that came before it; ids rise from code to code."""
        nearest = self._nearest(codes_BD, MOST_PROBES)
        self._add(codes_BD, ids_B, nearest[0][:, 0])
        return self._search(codes_BD, self._chosen(*nearest), k, ids_B)

    def search(self, codes_BD: Codes, k: int, before_B: Ids) -> Neighbours:
        """Returns the k nearest of the codes that were taken whose ids are less than `before`, as far as the cells searched hold them."""
        return self._search(codes_BD, self._chosen(*self._nearest(codes_BD, MOST_PROBES)), k, before_B)

    def settle(self, store: CodeStore) -> None:
        """Makes cells anew where the index is `GROWTH` times as large as when that was last done, and takes everything where it lacks it.

        The cells of a store that is read after a kill are those that it keeps, so they are the same as without the kill.
        """
        made_at, centroids = self._ranks.from_all(self._newest(store) if self._ranks.is_first else None)[0] or (0, None)
        if made_at == self._made_at and len(store) == self._size:
            return
        if centroids is not None and made_at != self._made_at:
            self._cells = Cells(centroids)
        self._made_at = made_at
        self._empty()
        for codes_BD, ids in store.blocks():
            self._add(codes_BD, ids, self._nearest(codes_BD, 1)[0][:, 0])

    def _search(self, codes_BD: Codes, cells_BP: Ids, k: int, before_B: Ids) -> Neighbours:
        mine = np.where(self._is_mine(cells_BP), cells_BP, -1)
        found = self._ranks.from_all(self._lists.search(codes_BD, mine, k, before_B))
        if len(found) == 1:
            return found[0]
        return top(np.hstack([part.cosines for part in found]), np.hstack([part.ids for part in found]), k)

    def _add(self, codes_BD: Codes, ids_B: Ids, cells_B: Ids) -> None:
        mine = self._is_mine(cells_B)
        self._lists.add(codes_BD[mine], ids_B[mine], cells_B[mine])
        self._held += np.bincount(cells_B, minlength=len(self._held))
        self._size += len(ids_B)

    def _chosen(self, cells_BP: Ids, cosines_BP: npt.NDArray[np.float32]) -> Ids:
        """Returns int64[B, P] which of the nearest cells to search; -1: no more."""
        if len(self._cells) == 1:
            return cells_BP
        held = self._held[cells_BP]
        before = np.cumsum(held, axis=1) - held
        is_searched = (before < self._effort) & ((cosines_BP > cosines_BP[:, :1] - MARGIN) | (before < LEAST))
        return np.where(is_searched, cells_BP, -1)[:, : max(int(is_searched.sum(1).max(initial=1)), 1)]

    def _nearest(self, codes_BD: Codes, count: int) -> tuple[Ids, npt.NDArray[np.float32]]:
        if len(self._cells) == 1 or self._ranks.world_size == 1:
            return self._cells.nearest(codes_BD, count)
        tiles = range(self._ranks.rank * _TILE, len(codes_BD), self._ranks.world_size * _TILE)
        told = self._ranks.from_all([(start, *self._cells.nearest(codes_BD[start : start + _TILE], count)) for start in tiles])
        found = sorted([*itertools.chain(*told), (-1, *self._cells.nearest(codes_BD[:0], count))], key=operator.itemgetter(0))
        return np.concatenate([cells for _, cells, _ in found]), np.concatenate([cosines for _, _, cosines in found])

    def _newest(self, store: CodeStore) -> tuple[int, Codes] | None:
        """Returns the cells to go on with; those that are due are made, and kept. Only rank 0 asks: what it finds holds for all."""
        size, kept = len(store), store.newest_cells()
        if self._effort and size >= max(GROWTH * (kept[0] if kept is not None else 0), EXACT_BELOW):
            store.keep_cells(make_cells(store.rows(sample_rows(size, self._seed)), num_cells(size)).centroids)
            return store.newest_cells()
        return kept

    def _is_mine(self, cells: Ids) -> npt.NDArray[np.bool_]:
        is_mine: npt.NDArray[np.bool_] = cells % self._ranks.world_size == self._ranks.rank
        return is_mine


def _lists_for(device: torch.device) -> Callable[[int, int], Lists]:
    return FaissLists if device.type == "cpu" else functools.partial(TorchLists, device=device)
