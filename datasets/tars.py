"""What a WebDataset tar holds and where: members grouped into samples, with the byte offset of each member."""

import dataclasses
import lzma
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Self

from ..cli.errors import DataError, UserError

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "jpe", "jfif", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "pbm", "pnm")

_KEY_AND_EXTENSION = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")  # webdataset's own rule (tariterators.base_plus_ext)
_META_MEMBER = re.compile(r"^__[^/]*__($|/)")  # webdataset skips these
BLOCK_BYTES = 512
_CHUNK_BYTES = 1 << 20
_COMPRESSED = {b"\x1f\x8b": "gzip -d", b"BZh": "bzip2 -d", b"\xfd7zXZ": "xz -d", b"\x28\xb5\x2f\xfd": "zstd -d"}


@dataclasses.dataclass(frozen=True, slots=True)
class Extent:
    """Where the bytes of a member lie inside its tar."""

    offset: int
    size: int


@dataclasses.dataclass(frozen=True, slots=True)
class TarSample:
    """Consecutive members of one key, by lower-case extension."""

    key: str
    members: Mapping[str, Extent]

    @property
    def image(self) -> Extent | None:
        """The image member, the first of `IMAGE_EXTENSIONS` that the sample has; None without one."""
        return next((self.members[extension] for extension in IMAGE_EXTENSIONS if extension in self.members), None)


def scan(path: Path) -> Iterator[TarSample]:
    """Yields the samples of a plain tar in order, grouped as `webdataset.tariterators.group_by_keys` groups them.

    Raises:
        UserError: when the tar is compressed, with the remedy.
        DataError: when it is truncated, a header is damaged, a member cannot be addressed, or a key has two members alike.
    """
    refuse_compressed(path)
    key, members = "", dict[str, Extent]()
    for name, extent in _members(path):
        parts = key_and_extension(name)
        if parts is None:
            continue
        member_key, extension = parts
        if member_key != key:
            if members:
                yield TarSample(key, members)
            key, members = member_key, {}
        if extension in members:
            raise DataError(f"{path}: two members {name!r} in one sample")
        members[extension] = extent
    if members:
        yield TarSample(key, members)


def key_and_extension(name: str) -> tuple[str, str] | None:
    """Returns a member's sample key and lower-case extension, None for a member that belongs to no sample."""
    match = _KEY_AND_EXTENSION.match(name)
    return None if match is None or _META_MEMBER.match(name) else (match[1], match[2].lower())


def refuse_compressed(path: Path) -> None:
    """Raises UserError for a compressed file: its members have no offsets to read from."""
    with path.open("rb") as file:
        start = file.read(8)
    for magic, command in _COMPRESSED.items():
        if start.startswith(magic):
            raise UserError(f"{path}: compressed; random access needs a plain tar: {command} < {path.name} > {path.stem}-plain.tar")


def read_extent(file: IO[bytes], extent: Extent) -> bytes:
    """Returns the bytes of a member of an open tar."""
    file.seek(extent.offset)
    return file.read(extent.size)


def walk(path: Path, file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """Yields every member of the tar that `file` reads, forward only, so that a decompressing file will do; `path` is for messages.

    Raises:
        DataError: for a truncated tar or a damaged header.
    """
    try:
        with tarfile.open(fileobj=file, mode="r:", tarinfo=_StrictTarInfo) as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # else tarfile keeps every header it has seen
                yield member
    except (tarfile.TarError, EOFError, OSError, ValueError, RecursionError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(f"{path}: not a whole tar: {error}") from None


class _StrictTarInfo(tarfile.TarInfo):
    """Makes a damaged header an error; Python's tarfile takes one behind the first member for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Returns the header of one block; raises ReadError, which `TarFile.next` lets through."""
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # typeshed leaves it out
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"truncated or damaged at a member's header ({error})") from None


def _members(path: Path) -> Iterator[tuple[str, Extent]]:
    """Yields (name, extent) of every regular member, then checks that nothing but zeros follows the last one."""
    end, size = 0, path.stat().st_size
    with path.open("rb") as file:
        for member in walk(path, file):
            if member.issparse():
                raise DataError(f"{path}: {member.name!r} is a sparse member; write it again as a plain file")
            length = member.size if member.isreg() else 0
            end = member.offset_data + -(-length // BLOCK_BYTES) * BLOCK_BYTES
            if end > size:
                raise DataError(f"{path}: truncated inside {member.name!r}: {size} bytes, needs {end}")
            if member.isreg():
                yield member.name, Extent(member.offset_data, member.size)
        file.seek(end)
        while chunk := file.read(_CHUNK_BYTES):
            if chunk.strip(b"\0"):
                raise DataError(f"{path}: damaged: data after the end of the archive, behind byte {end}")
