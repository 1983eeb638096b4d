"""A bounded number of open files, shared by threads, none of which is closed under a reader."""

import collections
import os
import threading
from collections.abc import Callable, Collection
from pathlib import Path

MOST_OPEN = 256
"""Files that a table keeps open; the usual bound of a process is 1,024 descriptors."""


class OpenFile:
    """A descriptor that is closed when nobody refers to it any more; its bytes stay readable when the file is removed."""

    def __init__(self, path: Path) -> None:
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


class OpenFiles:
    """Files by number, opened when first asked for; beyond `most` the one unused for longest goes. Safe to use from several threads."""

    def __init__(self, opener: Callable[[int], OpenFile], most: int = MOST_OPEN) -> None:
        self._opener, self._most = opener, most
        self._lock = threading.Lock()
        self._files: collections.OrderedDict[int, OpenFile] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._files)

    def get(self, number: int) -> OpenFile:
        """Returns the open file; a reader keeps the reference for as long as it reads. Opening, however long, blocks nobody else."""
        with self._lock:
            file = self._files.get(number)
            if file is not None:
                self._files.move_to_end(number)
                return file
        opened = self._opener(number)
        with self._lock:
            file = self._files.setdefault(number, opened)
            self._files.move_to_end(number)
            while len(self._files) > self._most:
                self._files.popitem(last=False)
        return file

    def keep_only(self, numbers: Collection[int]) -> None:
        """Lets go of all other files."""
        with self._lock:
            for number in self._files.keys() - set(numbers):
                del self._files[number]

    def reset_after_fork(self) -> None:
        """In a forked child, before any of its threads: begins anew, since another thread of the parent may have held the lock."""
        self._lock = threading.Lock()
        self._files = collections.OrderedDict()
