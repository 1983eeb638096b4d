"""Labelled images that lie as files of their own, in the order of a list."""

import concurrent.futures
import functools
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ..atomic import sha256_json
from ..images import decode_rgb

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")

_HASHED_BYTES = 256 << 20
_STAT_THREADS = 16  # on a network file system a stat waits for the server, not for the processor
_STAT_CHUNK = 4096


class LabelledRows:
    """Labels and class names of numbered samples: what all stores of downstream sets share."""

    def __init__(self, labels: npt.NDArray[np.int64], class_names: Sequence[str]) -> None:
        self._labels, self._class_names = labels, tuple(class_names)

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """int64[N] class ids."""
        return self._labels

    @property
    def class_names(self) -> list[str]:
        """Class names by class id."""
        return list(self._class_names)


class PathBlock:
    """Paths by number, kept as one block of bytes: a million of them are sent to a spawned worker at once, not one by one."""

    def __init__(self, paths: Iterable[str]) -> None:
        encoded = [os.fsencode(path) for path in paths]
        self._block = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, number: int) -> str:
        if not 0 <= number < len(self):
            raise IndexError(f"path {number} of {len(self)}")
        return os.fsdecode(self._block[self._ends[number] : self._ends[number + 1]])

    def __iter__(self) -> Iterator[str]:
        return (self[number] for number in range(len(self)))


class ListedImages(LabelledRows):
    """Images by number: file and class id of each.

    `data_hash` covers names (relative to the folder), labels and classes, and the bytes of the images where they are at most 256 MiB
    together; of larger sets it covers sizes instead of bytes, so an edit that keeps every name and size goes unseen.
    """

    def __init__(self, folder: Path, files: Sequence[str], labels: npt.NDArray[np.int64], class_names: Sequence[str]) -> None:
        super().__init__(labels, class_names)
        self._folder, self._files = folder, PathBlock(files)

    @functools.cached_property
    def sizes(self) -> npt.NDArray[np.int64]:
        """int64[N] bytes of each file, as they were when first asked for; -1 where there is none, or a folder in its place."""
        return np.array(_sizes(self._folder, list(self._files)), np.int64)

    def traits(self) -> Iterator[tuple[int, str, int]]:
        """Yields class id, file name without its folders, and size of each sample."""
        names = (file.rpartition("/")[2] for file in self._files)
        return zip(self._labels.tolist(), names, self.sizes.tolist(), strict=True)

    @functools.cached_property
    def data_hash(self) -> str:
        """Identity of the data, see the class."""
        files, sizes = list(self._files), self.sizes.tolist()
        whole = sum(sizes) <= _HASHED_BYTES
        contents = [hashlib.sha256((self._folder / file).read_bytes()).hexdigest() for file in files] if whole else []
        return sha256_json([files, contents if whole else sizes, self._labels.tolist(), self._class_names])

    def load(self, sample: int) -> torch.Tensor:
        """Returns uint8[3, H, W]; raises UnreadableImageError."""
        return decode_rgb((self._folder / self._files[sample]).read_bytes())

    def name(self, sample: int) -> str:
        """Returns the path of a sample."""
        return str(self._folder / self._files[sample])


def images_below(folder: Path) -> list[str]:
    """Returns the images in a folder and the folders in it: paths relative to it, sorted.

    An image is what ends in one of `IMAGE_SUFFIXES`; hidden files and folders are passed over, links to folders not followed.
    """
    found, waiting = [], [""]
    while waiting:
        prefix = waiting.pop()
        with os.scandir(folder / prefix) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{prefix}{entry.name}/")
                elif entry.name.lower().endswith(IMAGE_SUFFIXES):
                    found.append(prefix + entry.name)
    return sorted(found)


def folders_in(folder: Path) -> list[str]:
    """Returns the names of the folders directly in a folder, sorted, without hidden ones; links to folders count."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _sizes(folder: Path, files: Sequence[str]) -> list[int]:
    """Returns the size in bytes of each file; -1 for what is none."""
    chunks = [files[start : start + _STAT_CHUNK] for start in range(0, len(files), _STAT_CHUNK)]
    prefix = f"{folder}{os.sep}"

    def measure(chunk: Sequence[str]) -> list[int]:
        return [_size(prefix + file) for file in chunk]

    with concurrent.futures.ThreadPoolExecutor(_STAT_THREADS) as threads:
        return [size for sizes in threads.map(measure, chunks) for size in sizes]


def _size(path: str) -> int:
    try:
        found = os.stat(path)  # noqa: PTH116 (a Path for each of a million files takes as long again)
    except (FileNotFoundError, NotADirectoryError):
        return -1
    return found.st_size if stat.S_ISREG(found.st_mode) else -1
