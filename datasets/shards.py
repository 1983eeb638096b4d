"""A shard folder, here or elsewhere, opened: random access to the samples of WebDataset tars through their index."""

import functools
import os
import tarfile
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..cli.errors import BambooError, DataError
from .images import DecodeCounts, Encoded, decode_rgb
from .index import FILE_NAME as INDEX_NAME
from .index import read_index
from .index_check import check_index
from .manifest import FILE_NAME as MANIFEST_NAME
from .manifest import Manifest, parse_manifest, read_manifest
from .remote.cache import Remote, ShardCache
from .remote.download import fetch_bytes
from .remote.locations import check_address, is_remote, join, local_path, shown
from .remote.open_files import OpenFile, OpenFiles
from .remote.prefetch import Prefetcher
from .stores import CutShortError

_TAR_BLOCK_BYTES = 512
_INDEX_BYTES, _INDEX_BYTES_OF_SAMPLE = 10**7, 4000  # the most that an index may have: hundreds of labels and confidences each


class Shards:
    """Samples of a shard folder by number, 0 ≤ sample < len; safe to share between threads and between forked and spawned processes.

    Files are opened when first read, a bounded number of them, and read with `pread`, so there is no seek position to share. Those of a
    remote folder are fetched whole into a cache, ahead of their use where `expect` says what comes.
    """

    def __init__(self, location: Path | str, manifest: Manifest, index_path: Path, cache: ShardCache | None) -> None:
        self._places, self._index_path = _Places(location, manifest, cache), index_path
        self.manifest, self.index, self.cache = manifest, read_index(index_path), cache
        if len(self.index) != manifest.num_samples:
            raise DataError(f"{index_path}: {len(self.index)} rows, but dataset.json counts {manifest.num_samples} samples")
        self.folder = shown(location) if isinstance(location, str) else location
        """The folder; of a remote one its address, as it may be shown."""
        self.decoded = DecodeCounts()
        self._files = OpenFiles(self._places.open)
        self._prefetcher = None if cache is None else Prefetcher(cache)
        self._own = threading.local()
        _watch_forks()
        _opened.add(self)

    @classmethod
    def open(cls, location: Path | str, *, cache: ShardCache | None = None) -> "Shards":
        """Opens a shard folder: a path, or an address (http(s)://, s3://, gs://, or another scheme of fsspec).

        Args:
            cache: where the shards of a remote folder are kept; None: `shards` below BAMBOO_CACHE or ~/.cache/bamboo, up to 50 GB.

        Raises:
            UserError: when it is no shard folder, when the address carries credentials, or when the cache is too small for one shard.
            DataError: when manifest, index and shard files do not belong together, or the remote folder cannot be read. What the index
                says is checked as a whole, see `check_index`.
        """
        if isinstance(location, str) and is_remote(location):
            return _open_remote(location, cache or ShardCache())
        folder = local_path(location)
        opened = cls(folder, read_manifest(folder), folder / INDEX_NAME, None)
        check_index(folder / INDEX_NAME, opened.manifest, str(folder / INDEX_NAME))
        for entry in opened.manifest.shards:
            shard = folder / entry.name
            actual = shard.stat().st_size if shard.exists() else -1
            if actual != entry.size_bytes:
                state = "missing" if actual < 0 else f"{actual} bytes, dataset.json says {entry.size_bytes}"
                raise DataError(f"{shard}: {state}; see: bamboo shards verify {folder}")
        return opened

    def __len__(self) -> int:
        return len(self.index)

    @property
    def shard_counts(self) -> npt.NDArray[np.int64]:
        """int64[S] samples per shard; samples are numbered through the shards in order."""
        return np.array([entry.num_samples for entry in self.manifest.shards], np.int64)

    @functools.cached_property
    def labels(self) -> npt.NDArray[np.integer]:
        """int32[N] class ids (-1: none; the first label of a multi-label sample); may be read-only, see `Index.single_labels`."""
        return self.index.single_labels()

    def labels_of(self, samples: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Returns int64[B] class ids of some samples, as `labels` has them; -1 for sample -1."""
        found = np.full(len(samples), -1, np.int64)
        found[samples >= 0] = self.index.rows.first_labels(samples[samples >= 0])
        return found

    @functools.cached_property
    def class_names(self) -> list[str]:
        """Class names by class id."""
        return [entry.name for entry in self.manifest.classes]

    @property
    def data_hash(self) -> str:
        """Identity of the data, see `Manifest.data_hash`."""
        return self.manifest.data_hash

    def expect(self, shards: Sequence[int]) -> None:
        """Takes the shards that are read now and soon, the soonest first: closes all others, and fetches what is missing in the background.

        Whatever is read besides is read all the same. As much is fetched ahead as the cache can hold.
        """
        self._files.keep_only(shards)
        if self._prefetcher is not None:
            self._prefetcher.expect([self._places.remote(shard) for shard in shards])

    def check_cache(self, num_shards: int, remedy: str) -> None:
        """Checks that the cache of a remote folder can hold that many shards at once, the largest ones.

        Args:
            remedy: how they may become fewer, `lower data.window`, for the error.

        Raises:
            UserError: when it cannot.
        """
        if self.cache is not None:
            largest = sorted((entry.size_bytes for entry in self.manifest.shards), reverse=True)[:num_shards]
            self.cache.check_holds(largest, f"the {len(largest)} largest shards of {self.folder} at once ({remedy})")

    def shard_of(self, sample: int) -> tuple[int, str]:
        """Returns (ordinal, name) of the shard that holds a sample, from the index alone."""
        ordinal, _, _ = self.index.rows.place(sample)
        return ordinal, self.manifest.shards[ordinal].name

    def read(self, sample: int) -> bytes:
        """Returns the encoded image of a sample.

        Raises:
            CutShortError: when the shard ends before the member does.
            DataError: when the shard cannot be read or fetched, naming it and the reason.
            UserError: when the cache has no room for it.
        """
        return bytes(self.encoded(sample))

    def load(self, sample: int) -> torch.Tensor:
        """Returns uint8[3, H, W], as displayed; raises UnreadableImageError, or what `read` raises."""
        return self.decode(self.encoded(sample))

    def encoded(self, sample: int) -> memoryview:
        """Returns the encoded image of a sample in this thread's one buffer, which its next read overwrites; errors as `read`."""
        shard, offset, size = self.index.rows.place(sample)
        buffer: bytearray = getattr(self._own, "buffer", bytearray())
        if size > len(buffer):
            buffer = self._own.buffer = bytearray(2 * size)
        data = memoryview(buffer)[:size]
        file = self._files.get(shard)
        try:
            count = os.preadv(file.descriptor, [data], offset)
        except OSError as error:
            raise DataError(f"{self._places.shown(shard)}: cannot be read: {error.strerror}") from None
        if count != size:
            raise CutShortError(f"{self._places.shown(shard)}: truncated: sample {sample} needs bytes {offset} to {offset + size}")
        return data

    def decode(self, data: Encoded) -> torch.Tensor:
        """Returns uint8[3, H, W] in [0, 255], as displayed; raises UnreadableImageError."""
        return decode_rgb(data, self.decoded)

    def read_at(self, shard: int, offset: int, size: int) -> bytes:
        """Returns `size` bytes of a shard file, fewer where it ends before; raises DataError where it cannot be read or fetched."""
        file = self._files.get(shard)
        try:
            return os.pread(file.descriptor, size, offset)
        except OSError as error:
            raise DataError(f"{self._places.shown(shard)}: cannot be read: {error.strerror}") from None

    def name(self, sample: int) -> str:
        """Returns `shard:key` of a sample, for messages; the key is read from the tar header before the image, where it can be read."""
        shard, offset, _ = self.index.rows.place(sample)
        try:
            header = self.read_at(shard, offset - _TAR_BLOCK_BYTES, _TAR_BLOCK_BYTES)
            member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").name
        except (tarfile.HeaderError, BambooError):
            member = f"sample {sample}"
        return f"{self.manifest.shards[shard].name}:{member}"

    def _begin_anew(self) -> None:
        self._files.reset_after_fork()
        self.index.reset_after_fork()
        if self._prefetcher is not None:
            self._prefetcher.reset_after_fork()

    def __reduce__(self) -> tuple[Any, ...]:
        """Opened anew in the other process, with nothing fetched again."""
        return type(self), (self._places.location, self.manifest, self._index_path, self.cache)


class _Places:
    """Where the shard files are, and how they are opened."""

    def __init__(self, location: Path | str, manifest: Manifest, cache: ShardCache | None) -> None:
        self.location, self._manifest, self._cache = location, manifest, cache
        self._remotes: dict[int, Remote] = {}

    def open(self, shard: int) -> OpenFile:
        """Returns the shard's file, from the cache where it is remote."""
        if self._cache is not None:
            return self._cache.open(self.remote(shard))
        path = local_path(self.location) / self._manifest.shards[shard].name
        try:
            return OpenFile(path)
        except OSError as error:
            raise DataError(f"{path}: cannot be opened: {error.strerror}") from None

    def remote(self, shard: int) -> Remote:
        """Returns address, hash and size of a remote shard."""
        if shard not in self._remotes:
            entry = self._manifest.shards[shard]
            self._remotes[shard] = Remote(join(str(self.location), entry.name), entry.sha256, entry.size_bytes)
        return self._remotes[shard]

    def shown(self, shard: int) -> str:
        """Returns the shard's path or address, for messages."""
        name = self._manifest.shards[shard].name
        return shown(self.remote(shard).url) if self._cache is not None else str(local_path(self.location) / name)


def _open_remote(location: str, cache: ShardCache) -> Shards:
    check_address(location)
    address = join(location, MANIFEST_NAME)
    manifest = parse_manifest(fetch_bytes(address, cache.patience), shown(address))
    most_bytes = _INDEX_BYTES + _INDEX_BYTES_OF_SAMPLE * manifest.num_samples
    index_path = cache.index(join(location, INDEX_NAME), manifest.index_sha256, most_bytes)
    shards = Shards(location, manifest, index_path, cache)
    check_index(index_path, manifest, shown(join(location, INDEX_NAME)))
    shards.check_cache(1, "pack smaller shards")
    return shards


@functools.cache
def _watch_forks() -> None:
    os.register_at_fork(after_in_child=_begin_anew_in_child)


def _begin_anew_in_child() -> None:
    """Sees to it that a forked child opens its own files, with locks that nobody holds."""
    for shards in list(_opened):
        shards._begin_anew()


_opened: "weakref.WeakSet[Shards]" = weakref.WeakSet()
