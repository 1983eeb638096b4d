"""InfoGrowth's own index, for results that compare with it: hnswlib with its settings, one sample at a time (arXiv 2405.18347)."""

from typing import Any

import numpy as np

from ...cli.errors import missing_extra
from .codes import Codes
from .index import CodeStore
from .lists import Ids, Neighbours, top

LINKS, BUILD_WIDTH, SEARCH_WIDTH = 48, 100, 32
"""M, efConstruction and ef of the seed."""

_FIRST_ROOM = 4096


class HnswIndex:
    """A graph that is searched and extended sample by sample, as far as what it is asked allows; it has no cells.

    Raises:
        UserError: when hnswlib is not installed.
    """

    def __init__(self, width: int) -> None:
        try:
            import hnswlib
        except ImportError:
            raise missing_extra("hnswlib", "hnsw") from None
        self._make, self._width = hnswlib.Index, width
        self._index, self._size = self._empty(), 0

    def _empty(self) -> Any:
        index = self._make(space="cosine", dim=self._width)
        index.init_index(max_elements=_FIRST_ROOM, M=LINKS, ef_construction=BUILD_WIDTH)
        index.set_ef(SEARCH_WIDTH)
        index.set_num_threads(1)  # so that the graph is the same every time
        return index

    @property
    def num_cells(self) -> int:
        """None."""
        return 0

    def take(self, codes_BD: Codes, ids_B: Ids, k: int) -> Neighbours:
        """Takes codes one after another, each once its neighbours have been looked for."""
        found = [self._take(codes_BD[row : row + 1], ids_B[row : row + 1], k) for row in range(len(ids_B))]
        empty = np.zeros((0, k), np.float32), np.zeros((0, k), np.int64)
        return Neighbours(np.vstack([empty[0], *(part.cosines for part in found)]), np.vstack([empty[1], *(part.ids for part in found)]))

    def _take(self, codes_1D: Codes, ids_1: Ids, k: int) -> Neighbours:
        found = self.search(codes_1D, k, ids_1)
        self._add(codes_1D, ids_1)
        return found

    def search(self, codes_BD: Codes, k: int, before_B: Ids) -> Neighbours:
        """Returns what the graph finds of the codes whose ids are less than `before`; it misses some."""
        count = min(k, self._size)
        cosines, ids = np.full((len(codes_BD), k), -np.inf, np.float32), np.full((len(codes_BD), k), -1, np.int64)
        if count and len(codes_BD):
            labels, distances = self._index.knn_query(codes_BD.astype(np.float32), k=count, num_threads=1)
            cosines[:, :count], ids[:, :count] = 1 - distances, labels.astype(np.int64)
        is_late = ids >= before_B[:, None]
        return top(np.where(is_late, -np.inf, cosines).astype(np.float32), np.where(is_late, -1, ids), k)

    def _add(self, codes_BD: Codes, ids_B: Ids) -> None:
        if self._size + len(ids_B) > self._index.get_max_elements():
            self._index.resize_index(2 * (self._size + len(ids_B)))
        self._index.add_items(codes_BD.astype(np.float32), ids_B, num_threads=1)
        self._size += len(ids_B)

    def settle(self, store: CodeStore) -> None:
        """Takes everything where nothing is held yet."""
        if self._size == len(store):
            return
        self._index, self._size = self._empty(), 0
        for codes_BD, ids in store.blocks():
            self._add(codes_BD, ids)
