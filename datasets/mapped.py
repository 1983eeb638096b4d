"""A file that is mapped for passes through it, and read where single values of it are wanted, so that neither makes it resident.

A kernel may map two megabytes for a byte that is touched, and takes them back only when memory is short.
"""

import mmap
import os
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pyarrow as pa

from ..cli.errors import DataError
from .remote.open_files import OpenFile


class MappedFile:
    """A file, opened and mapped read-only for as long as this object or a view of it lives; raises OSError."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, OpenFile(path)
        num_bytes = os.fstat(self._file.descriptor).st_size
        self._map = mmap.mmap(self._file.descriptor, num_bytes, prot=mmap.PROT_READ) if num_bytes else None
        self.buffer = pa.py_buffer(self._map or b"")
        """All of it, as Arrow takes it."""

    def give_back(self) -> None:
        """Unmaps the pages that were touched; whoever touches them again maps them again."""
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)

    def read(self, column: npt.NDArray[Any], start: int, into: npt.NDArray[Any]) -> None:
        """Copies column[start : start + len(into)], read from the file where `column` is a view of it.

        Raises:
            DataError: where the file has been cut since.
        """
        position = column.__array_interface__["data"][0] - self.buffer.address
        if not 0 <= position <= self.buffer.size - column.nbytes:
            into[:] = column[start : start + len(into)]
        elif os.preadv(self._file.descriptor, [into.data], position + start * column.itemsize) != into.nbytes:
            raise DataError(f"{self._path}: truncated: rows {start} to {start + len(into)} are missing")
