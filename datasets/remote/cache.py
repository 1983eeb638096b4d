"""A bounded folder of whole files fetched from elsewhere, shared by threads, processes and jobs on one machine.

Files are called by their SHA-256, so equal content of any address is fetched once. Nothing in it outlives its use: locks are the
kernel's, what a killed process leaves unfinished is gone on with or removed as the cache fills, and a file that is removed while
somebody reads it stays readable for that reader.
"""

import contextlib
import dataclasses
import errno
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ...cli.errors import DataError, UserError
from .download import NoRoomError, download
from .fetching import Fetching, report
from .locations import shown
from .locks import HeldLock, SharedLock, try_lock
from .open_files import OpenFile
from .part import Part
from .room import Room, lock_path
from .transport import Patience

DEFAULT_LIMIT_BYTES = 50 * 10**9

_SHA256 = re.compile(r"[0-9a-f]{64}")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 0.1


class Remote(NamedTuple):
    """A file elsewhere, as `dataset.json` knows it."""

    url: str
    sha256: str
    size_bytes: int


def cache_home() -> Path:
    """Returns the folder of all that Bamboo fetches: BAMBOO_CACHE, else XDG_CACHE_HOME/bamboo, else ~/.cache/bamboo."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bamboo"
    return Path(os.environ.get("BAMBOO_CACHE") or home).expanduser().absolute()


@dataclasses.dataclass(frozen=True)
class ShardCache:
    """The cache in `folder`, which holds at most `limit_bytes` of files, whole and unfinished; what was not used for longest goes first.

    Of several jobs that use it at once the greatest limit counts, see `room`. What lies in `indexes/` below it is not counted, and
    stays.
    """

    folder: Path = dataclasses.field(default_factory=lambda: cache_home() / "shards")
    limit_bytes: int = DEFAULT_LIMIT_BYTES
    patience: Patience = dataclasses.field(default_factory=Patience)
    _held_limit: SharedLock = dataclasses.field(default_factory=SharedLock, init=False, repr=False, compare=False)

    def open(self, wanted: Remote) -> OpenFile:
        """Returns the file, opened, fetching it where it is not here; waits while somebody else is fetching it (see `fetches_to`).

        Raises:
            DataError: when it cannot be had, naming it and the reason.
            UserError: when it is larger than the limit, when the disk is full, or has no file locks.
            OSError: naming the file, when the folder cannot be written.
        """
        if (file := self._open_whole(wanted)) is not None:
            return file
        self._check_wanted(wanted)
        self.folder.mkdir(parents=True, exist_ok=True)
        path, pause_s = self.folder / wanted.sha256, _FIRST_PAUSE_S
        try:
            while True:
                held = try_lock(lock_path(path))
                if held is not None:
                    with held:
                        if (file := self._open_whole(wanted)) is not None:
                            return file
                        if self._reserve(held, wanted):
                            report(Fetching.FETCH)
                            return self._fetch(wanted)
                report(Fetching.WAIT)
                time.sleep(pause_s)
                pause_s = min(1.5 * pause_s, _LONGEST_PAUSE_S)
                if (file := self._open_whole(wanted)) is not None:
                    return file
        finally:
            report(Fetching.DONE)

    def prefetch(self, wanted: Remote) -> bool:
        """Fetches the file unless it is here, somebody is fetching it, or others have all the room; returns whether it is here then.

        That it is here already does not count as a use: whoever expects it has counted one, and may be done with it by now.

        Raises:
            BambooError, OSError: as `open`.
        """
        if self._is_whole(wanted):
            return True
        self._check_wanted(wanted)
        self.folder.mkdir(parents=True, exist_ok=True)
        held = try_lock(lock_path(self.folder / wanted.sha256))
        if held is None:
            return False
        with held:
            if not self._is_whole(wanted):
                if not self._reserve(held, wanted):
                    return False
                self._fetch(wanted)
        return True

    def touch(self, wanted: Remote) -> bool:
        """Returns whether the whole file is here, and counts that as a use."""
        if not self._is_whole(wanted):
            return False
        with contextlib.suppress(OSError):  # another user's file, or a disk that cannot be written: they can be read all the same
            os.utime(self.folder / wanted.sha256)
        return True

    def index(self, url: str, sha256: str, most_bytes: int | None = None) -> Path:
        """Returns the local copy of a shard folder's index, which is fetched once and checked then; errors as `open`.

        Args:
            most_bytes: what it may be in size; None: anything.
        """
        if not _SHA256.fullmatch(sha256):
            raise DataError(f"{shown(url)}: dataset.json gives {sha256!r} for its sha256")
        path, pause_s = self.folder / "indexes" / f"{sha256}.arrow", _FIRST_PAUSE_S
        while not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            held = try_lock(lock_path(self.folder / sha256))
            if held is None:
                time.sleep(pause_s)
                pause_s = min(1.5 * pause_s, _LONGEST_PAUSE_S)
                continue
            with held:
                if not path.exists():
                    self._download(url, path, sha256, None, lambda part: None, most_bytes)
        return path

    def check_holds(self, sizes: list[int], what: str) -> None:
        """Raises UserError unless files of these sizes fit at once; `what` says what they are, for the message."""
        if sum(sizes) > self.limit_bytes:
            needed = f"{what}: {sum(sizes):,} bytes"
            raise UserError(f"data.cache_bytes={self.limit_bytes:,}: must hold {needed}; use data.cache_bytes>={sum(sizes)}")

    def _check_wanted(self, wanted: Remote) -> None:
        if not _SHA256.fullmatch(wanted.sha256):
            raise DataError(f"{shown(wanted.url)}: dataset.json gives {wanted.sha256!r} for its sha256")
        self.check_holds([wanted.size_bytes], f"one shard ({shown(wanted.url)})")

    def _is_whole(self, wanted: Remote) -> bool:
        if not _SHA256.fullmatch(wanted.sha256):  # a name that somebody else gave: it might lead out of the folder
            return False
        try:
            return (self.folder / wanted.sha256).stat().st_size == wanted.size_bytes
        except FileNotFoundError:
            return False

    def _open_whole(self, wanted: Remote) -> OpenFile | None:
        """Returns the file where it is here and of the right size, and counts that as a use."""
        if not self.touch(wanted):
            return None
        try:
            return OpenFile(self.folder / wanted.sha256)
        except FileNotFoundError:  # removed since
            return None

    def _reserve(self, held: HeldLock, wanted: Remote) -> bool:
        room = Room(self.folder, self.limit_bytes, self._held_limit)
        return room.reserve(self.folder / wanted.sha256, wanted.size_bytes, held.announce)

    def _fetch(self, wanted: Remote) -> OpenFile:
        """Returns the file, fetched and opened before anybody can remove it; the caller holds its lock."""
        path, opened = self.folder / wanted.sha256, []
        self._download(wanted.url, path, wanted.sha256, wanted.size_bytes, lambda part: opened.append(OpenFile(part)))
        return opened[-1]

    def _download(
        self, url: str, path: Path, sha256: str, size: int | None, check: Callable[[Path], object], most_bytes: int | None = None
    ) -> None:
        """Downloads, making room on a full disk for as long as there is something of ours to remove."""
        while True:
            try:
                download(
                    url,
                    path,
                    sha256=sha256,
                    said_by="(dataset.json)",
                    num_bytes=size,
                    size_said_by="dataset.json",
                    most_bytes=most_bytes,
                    patience=self.patience,
                    check=check,
                    show=False,
                )
                return
            except NoRoomError as error:
                needed = error.needed_bytes
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                part = Part(path)
                total = size or part.total(url)  # where nobody says it, the end may never come: nothing is removed for that
                needed = max(total - part.size, 1) if total else 0
            free = shutil.disk_usage(path.parent).free
            if not (needed and Room(self.folder, self.limit_bytes).give_up(needed, free, path)):
                Part(path).discard()
                more = f"{needed:,}" if needed else "an unknown number of"
                raise UserError(
                    f"{self.folder}: the disk is full: {shown(url)} needs {more} more bytes, {free:,} are free, and what the cache could "
                    f"remove is not enough; make room, set data.cache to a folder of another disk, or data.cache_bytes "
                    f"(now {self.limit_bytes:,}) to what this one can hold"
                )
