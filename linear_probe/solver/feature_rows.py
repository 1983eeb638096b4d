"""The rows of a probe as the solver reads them: float32 blocks on the device, from memory or, block by block, from a matrix on disk.

Shape letters: N rows, D features, B rows of a block.
"""

import abc
import concurrent.futures
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

Matrix = npt.NDArray[np.float32] | npt.NDArray[np.float16]

MEMORY_SHARE = 0.5
"""Share of the free memory that float32 rows may take where nothing else is said; the solver's own arrays need the rest."""

_BLOCK_ROWS = 8192  # what is summed in float64, or converted, at a time
_LEAST_BLOCK_ROWS = 256  # below it products are bound by the weights they read
_BLOCKS_HELD = 4  # of a streamed matrix at once: one read ahead, one being read, one converted, one centred


class FeatureRows(abc.ABC):
    """float32[N, D] rows that are read in order, a block at a time; every pass over them yields the same bits."""

    device: torch.device

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @property
    @abc.abstractmethod
    def num_features(self) -> int:
        """D."""

    @abc.abstractmethod
    def blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yields the place and the float32[B, D] block of every run of rows; a block may be a view: do not write to it."""

    @abc.abstractmethod
    def part(self, start: int, stop: int | None) -> "FeatureRows":
        """Returns the rows [start, stop) (to the end: None) as a view."""

    @abc.abstractmethod
    def shifted(self, mean_D: torch.Tensor) -> "FeatureRows":
        """Returns the rows minus float32[D]; rows in memory are changed in place, so that they stand there once."""

    def mean(self) -> torch.Tensor:
        """Returns the column means, float32[D], of sums in float64; one pass."""
        total_D = torch.zeros(self.num_features, dtype=torch.float64, device=self.device)
        for _, block_BD in self.blocks():
            total_D += block_BD.sum(0, dtype=torch.float64)
        return (total_D / max(len(self), 1)).float()


@dataclasses.dataclass(frozen=True, eq=False)
class HeldRows(FeatureRows):
    """Rows in the memory of the device."""

    matrix_ND: torch.Tensor

    def __len__(self) -> int:
        return len(self.matrix_ND)

    @property
    def device(self) -> torch.device:  # type: ignore[override]  # read from the matrix, never set
        """Where the rows are."""
        return self.matrix_ND.device

    @property
    def num_features(self) -> int:
        """D."""
        return self.matrix_ND.shape[1]

    def blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yields views."""
        for place in _places(len(self), _BLOCK_ROWS):
            yield place, self.matrix_ND[place]

    def part(self, start: int, stop: int | None) -> "HeldRows":
        """Returns a view."""
        return HeldRows(self.matrix_ND[start:stop])

    def shifted(self, mean_D: torch.Tensor) -> "HeldRows":
        """Subtracts in place."""
        self.matrix_ND.sub_(mean_D)
        return self


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedRows(FeatureRows):
    """The rows `order` of a matrix on disk (a memory map as a rule), read anew at every pass, the next block while one is at work."""

    matrix: Matrix
    order: npt.NDArray[np.int64]
    device: torch.device
    block_rows: int = _BLOCK_ROWS
    mean_D: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.order)

    @property
    def num_features(self) -> int:
        """D."""
        return int(self.matrix.shape[1])

    def blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yields blocks that were gathered by a thread, moved in the type of the matrix, then converted and centred on the device."""
        places = list(_places(len(self), self.block_rows))
        with concurrent.futures.ThreadPoolExecutor(1) as reader:
            coming = [reader.submit(self._gather, place) for place in places[:1]]
            for number, place in enumerate(places):
                block_BD = torch.from_numpy(coming.pop().result()).to(self.device).float()
                coming = [reader.submit(self._gather, following) for following in places[number + 1 : number + 2]]
                yield place, block_BD if self.mean_D is None else block_BD.sub_(self.mean_D)

    def part(self, start: int, stop: int | None) -> "StreamedRows":
        """Returns the same matrix with a part of the order."""
        return dataclasses.replace(self, order=self.order[start:stop])

    def shifted(self, mean_D: torch.Tensor) -> "StreamedRows":
        """Returns rows that are shifted as they are read."""
        return dataclasses.replace(self, mean_D=mean_D if self.mean_D is None else self.mean_D + mean_D)

    def held(self) -> HeldRows:
        """Returns the rows read into memory."""
        matrix_ND = torch.empty(len(self), self.num_features, device=self.device)
        for place, block_BD in self.blocks():
            matrix_ND[place] = block_BD
        return HeldRows(matrix_ND)

    def _gather(self, place: slice) -> Matrix:
        return self.matrix[self.order[place]]


def open_rows(matrix: Matrix, order: npt.NDArray[np.int64], device: torch.device, memory: int | None = None) -> FeatureRows:
    """Returns the rows `order` of a float16 or float32 matrix: in memory where that takes at most `memory` bytes, else streamed.

    Streamed blocks are of at most 8,192 rows, fewer where four of them would exceed `memory` (but never fewer than 256).

    Args:
        memory: bytes; None: half of what the device has free.
    """
    budget = int(MEMORY_SHARE * free_bytes(device)) if memory is None else memory
    row_bytes = 4 * matrix.shape[1]
    block_rows = min(_BLOCK_ROWS, max(_LEAST_BLOCK_ROWS, budget // (_BLOCKS_HELD * max(row_bytes, 1))))
    if row_bytes * len(order) <= budget:
        return StreamedRows(matrix, order, device).held()
    return StreamedRows(matrix, order, device, block_rows)


def free_bytes(device: torch.device) -> int:
    """Returns the bytes that a device can still give: of the GPU, or what Linux calls available, within the limit of the control group."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    meminfo = _read(Path("/proc/meminfo"))
    for line in meminfo.splitlines():
        if line.startswith("MemAvailable:"):
            available = 1024 * int(line.split()[1])
    limit, used = (_read(Path("/sys/fs/cgroup", name)).strip() for name in ("memory.max", "memory.current"))
    return min(available, max(int(limit) - int(used), 0)) if limit.isdecimal() and used.isdecimal() else available


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _places(num_rows: int, block_rows: int) -> Iterator[slice]:
    for start in range(0, num_rows, block_rows):
        yield slice(start, min(start + block_rows, num_rows))
