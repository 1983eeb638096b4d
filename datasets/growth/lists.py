"""The codes of every cell, one after another, and the search of some of them: by faiss, or by PyTorch on any device.

Both take codes in the order in which they were added within each cell, so of two equally near codes the earlier one is found.

Letters: B codes of a block, D width, P cells probed, k neighbours.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from ...cli.errors import missing_extra
from .codes import Codes

Ids = npt.NDArray[np.int64]

_SPARE, _MORE = 8, 4
_PRODUCTS = 1 << 26  # of one matrix on a device at a time


class Neighbours(NamedTuple):
    """The nearest codes of each of B, the nearest first, the smaller id first where they are equally near."""

    cosines: npt.NDArray[np.float32]
    """float32[B, k]; -inf where there are fewer."""
    ids: Ids
    """int64[B, k]; -1 where there are fewer."""


class Lists(Protocol):
    """Codes by cell."""

    def add(self, codes_BD: Codes, ids: Ids, cells: Ids) -> None:
        """Takes codes into their cells, int64[B]."""

    def search(self, codes_BD: Codes, cells_BP: Ids, k: int, before_B: Ids) -> Neighbours:
        """Returns the nearest codes whose ids are less than `before`, among those of the cells given for each; cell -1 is none."""


def top(cosines: npt.NDArray[np.float32], ids: Ids, k: int) -> Neighbours:
    """Returns the k best of the M candidates of each row, [B, M], in the order that `Neighbours` has."""
    order = np.lexsort((ids, -cosines), axis=1)[:, :k]
    return Neighbours(np.take_along_axis(cosines, order, 1), np.take_along_axis(ids, order, 1))


class FaissLists:
    """faiss' inverted lists of float16 codes, scanned by its vector units; threads share the queries, which changes no result.

    Raises:
        UserError: when faiss is not installed.
    """

    def __init__(self, width: int, num_cells: int) -> None:
        try:
            import faiss
        except ImportError:
            raise missing_extra("faiss", "grow") from None
        kind = faiss.ScalarQuantizer.QT_fp16
        self._faiss: Any = faiss
        coarse = faiss.IndexFlatIP(width)  # never asked: cells are chosen by `Cells`
        coarse.add(np.zeros((num_cells, width), np.float32))
        self._index: Any = faiss.IndexIVFScalarQuantizer(coarse, width, num_cells, kind, faiss.METRIC_INNER_PRODUCT, False)
        self._index.is_trained = True

    def add(self, codes_BD: Codes, ids: Ids, cells: Ids) -> None:
        """Takes codes into their cells, int64[B]."""
        rows, ids, cells = codes_BD.astype(np.float32), np.ascontiguousarray(ids), np.ascontiguousarray(cells)
        pointer = self._faiss.swig_ptr
        if len(rows):
            self._index.add_core(len(rows), pointer(rows), pointer(ids), pointer(cells))

    def search(self, codes_BD: Codes, cells_BP: Ids, k: int, before_B: Ids) -> Neighbours:
        """Returns the nearest codes whose ids are less than `before`, among those of the cells given for each; cell -1 is none.

        faiss finds the nearest of all; the few that come too late are struck out. More are asked for where that leaves too few, and where
        equally near ones may be missing: which of them faiss drops depends on what else it scans.
        """
        self._faiss.omp_set_num_threads(torch.get_num_threads())
        order = cells_BP[:, 0].argsort(kind="stable")  # codes of one cell follow one another, so what they scan stays in the cache
        cosines, ids = np.full((len(order), k), -np.inf, np.float32), np.full((len(order), k), -1, np.int64)
        wanted = k + _SPARE
        while len(order):
            near, last = self._scan(codes_BD[order], cells_BP[order], wanted, before_B[order])
            best = top(near.cosines, near.ids, k)
            cosines[order], ids[order] = best.cosines, best.ids
            order = order[last >= best.cosines[:, -1]]
            wanted *= _MORE
        return Neighbours(cosines, ids)

    def _scan(self, codes_BD: Codes, cells_BP: Ids, wanted: int, before_B: Ids) -> tuple[Neighbours, npt.NDArray[np.float32]]:
        """Returns the nearest, those that come too late struck out, and the cosine above which there are no more; NaN: none at all."""
        self._index.nprobe = cells_BP.shape[1]
        unused = np.zeros(cells_BP.shape, np.float32)
        cosines, ids = self._index.search_preassigned(codes_BD.astype(np.float32), wanted, np.ascontiguousarray(cells_BP), unused)
        last = np.where(ids[:, -1] >= 0, cosines[:, -1], np.nan).astype(np.float32)
        is_late = (ids >= before_B[:, None]) | (ids < 0)
        return Neighbours(np.where(is_late, -np.inf, cosines).astype(np.float32), np.where(is_late, -1, ids)), last


class TorchLists:
    """Lists of tensors on a device, searched cell by cell with a matrix product: for GPUs, and the slow twin of `FaissLists`."""

    def __init__(self, width: int, num_cells: int, device: torch.device) -> None:
        self._device, self._width = device, width
        self._codes = [torch.zeros(0, width, dtype=torch.float16, device=device) for _ in range(num_cells)]
        self._ids = [torch.zeros(0, dtype=torch.int64, device=device) for _ in range(num_cells)]
        self._sizes = [0] * num_cells

    def add(self, codes_BD: Codes, ids: Ids, cells: Ids) -> None:
        """Takes codes into their cells, int64[B]."""
        if not len(ids):
            return
        codes, numbers = torch.from_numpy(codes_BD).to(self._device), torch.from_numpy(ids).to(self._device)
        order = np.argsort(cells, kind="stable")
        found, starts = np.unique(cells[order], return_index=True)
        for cell, start, stop in zip(found.tolist(), starts.tolist(), [*starts[1:].tolist(), len(cells)], strict=True):
            chosen = torch.from_numpy(order[start:stop]).to(self._device)
            self._append(cell, codes[chosen], numbers[chosen])

    def _append(self, cell: int, codes: torch.Tensor, ids: torch.Tensor) -> None:
        size, total = self._sizes[cell], self._sizes[cell] + len(ids)
        if total > len(self._ids[cell]):  # room for as many again, so that a code is moved but a few times
            room = 2 * total
            self._codes[cell] = torch.cat([self._codes[cell][:size], codes.new_zeros(room - size, self._width)])
            self._ids[cell] = torch.cat([self._ids[cell][:size], ids.new_zeros(room - size)])
        self._codes[cell][size:total], self._ids[cell][size:total] = codes, ids
        self._sizes[cell] = total

    def search(self, codes_BD: Codes, cells_BP: Ids, k: int, before_B: Ids) -> Neighbours:
        """Returns the nearest codes whose ids are less than `before`, among those of the cells given for each; cell -1 is none."""
        codes = torch.tensor(codes_BD, device=self._device).float()
        before = torch.from_numpy(before_B).to(self._device)
        num_rows, num_probes = cells_BP.shape
        if not num_rows:
            return Neighbours(np.zeros((0, k), np.float32), np.zeros((0, k), np.int64))
        cosines = torch.full((num_rows, num_probes, k), -torch.inf, device=self._device)
        ids = torch.full((num_rows, num_probes, k), -1, dtype=torch.int64, device=self._device)
        flat = cells_BP.ravel()
        order = np.argsort(flat, kind="stable")
        found, starts = np.unique(flat[order], return_index=True)
        for cell, start, stop in zip(found.tolist(), starts.tolist(), [*starts[1:].tolist(), len(flat)], strict=True):
            size = self._sizes[cell] if cell >= 0 else 0
            if not size:
                continue
            for part in np.array_split(order[start:stop], -(-(stop - start) * size // _PRODUCTS)):
                rows, probes = (torch.from_numpy(places).to(self._device) for places in np.divmod(part, num_probes))
                near = codes[rows] @ self._codes[cell][:size].float().T
                near.masked_fill_(self._ids[cell][:size] >= before[rows][:, None], -torch.inf)
                best, places = near.sort(dim=1, descending=True, stable=True)  # the earlier of two equally near ones first
                count = min(k, size)
                cosines[rows, probes, :count] = best[:, :count]
                ids[rows, probes, :count] = self._ids[cell][places[:, :count]].masked_fill(best[:, :count].isinf(), -1)
        return top(cosines.flatten(1).cpu().numpy(), ids.flatten(1).cpu().numpy(), k)
