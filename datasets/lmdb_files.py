"""LMDB files, read only: checked before the library maps them, opened once in each process that reads."""

import os
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..cli.errors import DataError, UserError, missing_extra
from .sources import printable

if TYPE_CHECKING:
    import lmdb

DATA_NAME = "data.mdb"
MAX_KEY_BYTES = 511  # LMDB's own bound, unless it was built otherwise

_MAGIC, _MAGIC_OFFSET = b"\xde\xc0\xef\xbe", 16  # on little-endian machines, as are all that LMDB files are passed between


class LmdbFile:
    """Values by key of an LMDB file, a folder with `data.mdb` or the file itself; picklable, safe to fork, spawn and thread.

    Each process opens it at its first read, without locks and without read-ahead; an environment that was inherited by a fork is
    closed there and opened again. All objects of one process share it, since LMDB forbids to open a file twice.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._environment: lmdb.Environment | None = None
        self._owner = 0

    def read(self, key: bytes) -> bytearray | None:
        """Returns a copy of the value of a key, None where it has none; raises DataError where the file was damaged meanwhile."""
        import lmdb

        try:
            with self._opened().begin(buffers=True) as transaction:
                value = transaction.get(key)
                return None if value is None else bytearray(value)
        except lmdb.Error as error:
            raise DataError(f"{self.path}: {printable(name_of(key))}: {error}") from None

    def entries(self) -> Iterator[tuple[bytes, int]]:
        """Yields every key with the bytes of its value, in the order of the keys; values are not read."""
        with self._opened().begin(buffers=True) as transaction:
            for key, value in transaction.cursor():
                yield bytes(key), len(value)

    def _opened(self) -> "lmdb.Environment":
        if self._environment is None or self._owner != os.getpid():
            with _opening.setdefault(os.getpid(), threading.Lock()):
                self._environment = _environment(data_file(self.path))
            self._owner = os.getpid()
        return self._environment

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "_environment": None, "_owner": 0}


def open_lmdb(path: Path) -> LmdbFile:
    """Returns an LMDB file whose pages were all found sound: a damaged one would end the process, not raise.

    Raises:
        UserError: when there is none, or the package `lmdb` is missing.
        DataError: when it is truncated, damaged, or of another byte order or word size.
    """
    require_package()
    import lmdb.verify

    data = data_file(path)
    if not data.is_file():
        raise UserError(f"{path}: no LMDB ({DATA_NAME} is missing)")
    try:
        faults = lmdb.verify.verify(str(data), subdir=False)  # type: ignore[no-untyped-call]  # the library's own module has no types
    except lmdb.verify.VerifyError as error:
        raise DataError(f"{data}: not a whole LMDB file: {error}") from None
    if faults:
        more = f" (and {len(faults) - 1:,} more)" if len(faults) > 1 else ""
        raise DataError(f"{data}: truncated or damaged: {faults[0]}{more}; copy it again from where it was made")
    return LmdbFile(path)


def require_package() -> None:
    """Raises UserError unless the package `lmdb` is there, with the part of it that checks files."""
    try:
        import lmdb.verify  # noqa: F401 (looked for, not used)
    except ImportError:
        raise missing_extra("lmdb", "lmdb") from None


def is_lmdb(path: Path) -> bool:
    """Whether a path is a folder with `data.mdb`, or a file that begins as LMDB's do."""
    if path.is_dir():
        return (path / DATA_NAME).is_file()
    with path.open("rb") as file:
        return file.read(_MAGIC_OFFSET + len(_MAGIC))[_MAGIC_OFFSET:] == _MAGIC


def data_file(path: Path) -> Path:
    """Returns the file with the pages, of either form."""
    return path / DATA_NAME if path.is_dir() else path


def key_of(name: str) -> bytes:
    """Returns the key of a name: its bytes, whatever they are."""
    return name.encode("utf-8", "surrogateescape")


def name_of(key: bytes) -> str:
    """Returns the name whose key this is."""
    return key.decode("utf-8", "surrogateescape")


_environments: "weakref.WeakValueDictionary[tuple[int, int, int], lmdb.Environment]" = weakref.WeakValueDictionary()
_opening: dict[int, threading.Lock] = {}  # LMDB refuses to open a file twice, so threads take turns; a fork may copy a lock that is held


def _environment(data: Path) -> "lmdb.Environment":
    """Returns this process's environment of a data file; those of the process that forked it are closed."""
    import lmdb

    for owner, inherited in list(_environments.items()):
        if owner[0] != os.getpid():
            inherited.close()
            del _environments[owner]
    try:
        status = data.stat()
        key = (os.getpid(), status.st_dev, status.st_ino)
        environment = _environments.get(key)
        if environment is None:
            environment = lmdb.open(str(data), subdir=False, readonly=True, create=False, lock=False, readahead=False)
            _environments[key] = environment
    except lmdb.Error as error:
        raise DataError(f"{data}: cannot be opened: {error}") from None
    return environment
