"""Tars and zips of class folders as sources. Members are read by position; nothing is ever extracted under its own name."""

import bz2
import collections
import gzip
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, cast

from ..cli.errors import DataError, UserError
from .atomic import atomic_file
from .class_list import ClassList
from .sources import File, Reader, Record, Source, printable, tree_source
from .tars import walk

_COMPRESSIONS = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ": "xz"}
_COPY_BYTES = 1 << 20


class TarReader:
    """Reads members of a plain tar by offset, with `pread`; the file is opened once per process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def prepare(self) -> None:
        """Needs nothing."""

    def read(self, record: Record) -> bytes:
        """Returns the member's bytes."""
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        data = os.pread(self._descriptor, record.size_bytes, record.position)
        if len(data) != record.size_bytes:
            raise DataError(f"{self._path}: ends inside {printable(record.name)}; it was changed while it was read")
        return data


class CompressedTarReader(TarReader):
    """Reads members of a compressed tar from a plain copy at `copy`, which `prepare` makes unless an earlier run has made it."""

    def __init__(self, path: Path, copy: Path) -> None:
        super().__init__(copy)
        self._archive, self._copy = path, copy

    def prepare(self) -> None:
        """Decompresses the archive as a whole into one file."""
        if not self._copy.exists():
            with open_tar(self._archive) as plain, atomic_file(self._copy) as file:
                shutil.copyfileobj(plain, file, _COPY_BYTES)


class ZipReader:
    """Reads members of a zip by their number in its directory; the file is opened once per process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._zip: zipfile.ZipFile | None = None

    def prepare(self) -> None:
        """Needs nothing."""

    def read(self, record: Record) -> bytes:
        """Returns the member's bytes, checked against its CRC-32."""
        if self._zip is None:
            self._zip = zipfile.ZipFile(self._path)
        try:
            return self._zip.read(self._zip.infolist()[record.position])
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
            raise OSError(f"damaged or unsupported zip member ({error})") from None


def is_archive(path: Path) -> bool:
    """Whether a file is a zip, a tar or a compressed file, by its content."""
    return _compression(path) is not None or zipfile.is_zipfile(path) or tarfile.is_tarfile(path)


def open_tar(path: Path) -> IO[bytes]:
    """Opens a tar, decompressing what is compressed."""
    compression = _compression(path)
    if compression == "gz":
        return cast(IO[bytes], gzip.GzipFile(path))
    if compression == "bz2":
        return cast(IO[bytes], bz2.BZ2File(path))
    return cast(IO[bytes], lzma.LZMAFile(path)) if compression == "xz" else path.open("rb")


def _compression(path: Path) -> str | None:
    with path.open("rb") as file:
        start = file.read(8)
    return next((name for magic, name in _COMPRESSIONS.items() if start.startswith(magic)), None)


def archive_source(path: Path, subdir: str, classes: ClassList | None, copy: Path) -> Source:
    """Returns the images of a tar(.gz, .bz2, .xz) or zip of class folders below `subdir`.

    Absolute names, names with `..`, links and devices are left out with a note; of two members of one name the later counts.
    A compressed tar is decompressed into the one file `copy` before it is packed.

    Raises:
        UserError: when there is no image below `subdir`.
        DataError: for a damaged archive.
    """
    if zipfile.is_zipfile(path):
        reader: Reader = ZipReader(path)
        members = _zip_members(path)
    else:
        reader = TarReader(path) if _compression(path) is None else CompressedTarReader(path, copy)
        members = _tar_members(path)
    files, folders, refused = _tree(members, subdir)
    where = f"{path}:{subdir}" if subdir else str(path)
    if not files and not folders and subdir:
        raise UserError(f"--subdir={subdir}: {path} holds no such folder")
    source = tree_source(files, folders, classes, reader, where)
    notes = tuple(f"{count:,} members left out: {kind} (the first: {printable(name)})" for kind, (count, name) in refused.items())
    return Source(source.records, source.classes, reader, source.notes + notes)


Member = tuple[str, str, int, int]  # name, kind ("file", "folder" or why it is refused), size, position


def _tree(members: Iterable[Member], subdir: str) -> tuple[list[File], list[str], dict[str, tuple[int, str]]]:
    """Returns (files, folders, refused kinds with count and first name), paths relative to `subdir`."""
    files: dict[str, File] = {}
    folders: set[str] = set()
    refused: dict[str, tuple[int, str]] = collections.defaultdict(lambda: (0, ""))
    top = PurePosixPath(subdir)
    for name, kind, size, position in members:
        path = PurePosixPath(name.replace("\\", "/"))
        if kind in ("file", "folder") and (path.is_absolute() or ".." in path.parts):
            kind = "absolute names or `..`"
        if kind not in ("file", "folder"):
            refused[kind] = (refused[kind][0] + 1, refused[kind][1] or name)
        elif path.is_relative_to(top):
            inside = path.relative_to(top).as_posix()
            if kind == "file":
                files[inside] = File(inside, size, position)
            folders.update(parent.as_posix() for parent in PurePosixPath(inside).parents)
            folders.update({inside} if kind == "folder" else ())
    return list(files.values()), sorted(folders), dict(refused)


def _tar_members(path: Path) -> Iterator[Member]:
    with open_tar(path) as file:
        for member in walk(path, file):
            if member.isdir():
                kind = "folder"
            elif member.issym() or member.islnk():
                kind = "links"
            else:
                kind = "file" if member.isreg() and not member.issparse() else "devices, pipes and sparse files"
            yield member.name, kind, member.size, member.offset_data


def _zip_members(path: Path) -> Iterator[Member]:
    try:
        with zipfile.ZipFile(path) as archive:
            listed = archive.infolist()
    except zipfile.BadZipFile as error:
        raise DataError(f"{path}: not a whole zip: {error}") from None
    for number, member in enumerate(listed):
        mode = stat.S_IFMT(member.external_attr >> 16)
        if member.is_dir():
            kind = "folder"
        elif mode not in (0, stat.S_IFREG):
            kind = "links" if mode == stat.S_IFLNK else "devices, pipes and sparse files"
        else:
            kind = "encrypted files" if member.flag_bits & 1 else "file"
        yield member.filename, kind, member.file_size, number
