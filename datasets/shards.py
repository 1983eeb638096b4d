"""A shard folder, opened: random access to the samples of WebDataset tars through their index."""

import functools
import os
import tarfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ..cli.errors import DataError
from .images import DecodeCounts, decode_rgb
from .index import FILE_NAME as INDEX_NAME
from .index import Index, read_index
from .manifest import Manifest, read_manifest

_TAR_BLOCK_BYTES = 512


class Shards:
    """Samples of a shard folder by number, 0 ≤ sample < len; safe to share between forked and spawned processes.

    Files are opened when first read, once per process, and read with `pread`, so there is no seek position to share.
    """

    def __init__(self, folder: Path, manifest: Manifest, index: Index) -> None:
        self.folder, self.manifest, self.index = folder, manifest, index
        self.decoded = DecodeCounts()
        self._buffer = bytearray()
        self._descriptors: dict[int, int] = {}
        self._owner = os.getpid()

    @classmethod
    def open(cls, folder: Path) -> "Shards":
        """Opens a shard folder.

        Raises:
            UserError: when `folder` is no shard folder.
            DataError: when manifest, index and shard files do not belong together.
        """
        manifest, index = read_manifest(folder), read_index(folder / INDEX_NAME)
        if len(index) != manifest.num_samples:
            raise DataError(f"{folder / INDEX_NAME}: {len(index)} rows, but dataset.json counts {manifest.num_samples} samples")
        for entry in manifest.shards:
            path = folder / entry.name
            actual = path.stat().st_size if path.exists() else -1
            if actual != entry.size_bytes:
                state = "missing" if actual < 0 else f"{actual} bytes, dataset.json says {entry.size_bytes}"
                raise DataError(f"{path}: {state}; see: bamboo shards verify {folder}")
        return cls(folder, manifest, index)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def shard_counts(self) -> npt.NDArray[np.int64]:
        """int64[S] samples per shard; samples are numbered through the shards in order."""
        return np.array([entry.num_samples for entry in self.manifest.shards], np.int64)

    @functools.cached_property
    def labels(self) -> npt.NDArray[np.int64]:
        """int64[N] class ids (-1: none; the first label of a multi-label sample)."""
        return self.index.single_labels()

    @functools.cached_property
    def class_names(self) -> list[str]:
        """Class names by class id."""
        return [entry.name for entry in self.manifest.classes]

    @property
    def data_hash(self) -> str:
        """Identity of the data, see `Manifest.data_hash`."""
        return self.manifest.data_hash

    def read(self, sample: int) -> bytes:
        """Returns the encoded image of a sample.

        Raises:
            DataError: when the shard ends before the member does.
        """
        return bytes(self._read_over(sample))

    def load(self, sample: int) -> torch.Tensor:
        """Returns uint8[3, H, W], as displayed; raises UnreadableImageError or DataError."""
        return decode_rgb(self._read_over(sample), self.decoded)

    def read_at(self, shard: int, offset: int, size: int) -> bytes:
        """Returns `size` bytes of a shard file, fewer where it ends before."""
        return os.pread(self._descriptor(shard), size, offset)

    def _read_over(self, sample: int) -> memoryview:
        """Returns the encoded image of a sample in this process's one buffer, which the next read overwrites."""
        shard, offset, size = self.index.shard.item(sample), self.index.offset.item(sample), self.index.size.item(sample)
        if size > len(self._buffer):
            self._buffer = bytearray(2 * size)
        data = memoryview(self._buffer)[:size]
        if os.preadv(self._descriptor(shard), [data], offset) != size:
            raise DataError(f"{self._path(shard)}: truncated: sample {sample} needs bytes {offset} to {offset + size}")
        return data

    def name(self, sample: int) -> str:
        """Returns `shard:key` of a sample, for messages; the key is read from the tar header before the image."""
        shard, offset = int(self.index.shard[sample]), int(self.index.offset[sample])
        header = self.read_at(shard, offset - _TAR_BLOCK_BYTES, _TAR_BLOCK_BYTES)
        try:
            member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").name
        except tarfile.HeaderError:
            member = f"sample {sample}"
        return f"{self.manifest.shards[shard].name}:{member}"

    def _path(self, shard: int) -> Path:
        return self.folder / self.manifest.shards[shard].name

    def _descriptor(self, shard: int) -> int:
        if self._owner != os.getpid():  # after a fork: descriptors of the parent are not ours to keep count of
            self._descriptors, self._owner = {}, os.getpid()
        if shard not in self._descriptors:
            self._descriptors[shard] = os.open(self._path(shard), os.O_RDONLY | os.O_CLOEXEC)
        return self._descriptors[shard]

    def __getstate__(self) -> dict[str, object]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Path]) -> None:
        opened = Shards.open(state["folder"])
        self.__init__(opened.folder, opened.manifest, opened.index)  # type: ignore[misc]  # re-opened in the spawned process
