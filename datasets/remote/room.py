"""Room in a cache folder: what lies there, what is promised to downloads under way, and what goes first.

Files are called by their SHA-256: `HASH` is whole, `HASH.part` (with `HASH.part.json`) is not, `HASH.lock` is held by whoever downloads
it and is as long as the file will be. Nothing else is touched. All is decided under one lock, which is held for moments.

Those who share a folder may have different limits. Each holds `limits/BYTES` locked for as long as it uses the folder, and all keep to
the greatest of them: a smaller one that counted alone would wait for ever for room that others always have, and remove what they need.
"""

import contextlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from .locks import SharedLock, is_locked, locked, try_lock

_NAME = re.compile(r"([0-9a-f]{64})(|\.part|\.lock|\.part\.json)")
_LEFT_BY_A_WRITER = re.compile(r"\.[0-9a-f]{64}\..*\.tmp")
_ABANDONED_AFTER_S = 3600.0
_FUTURE_NS = 10 * 10**9  # a file changed later than so from now is of a clock that was wrong


class _Held(NamedTuple):
    """A file that may go."""

    used_ns: int
    path: Path
    size: int


class _Content(NamedTuple):
    """What a folder holds: files that may go, the longest unused first, and bytes that may not."""

    free_to_go: list[_Held]
    kept_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.kept_bytes + sum(file.size for file in self.free_to_go)


def part_path(path: Path) -> Path:
    """Returns where the unfinished file lies."""
    return path.with_name(f"{path.name}.part")


def lock_path(path: Path) -> Path:
    """Returns where the file's lock lies."""
    return path.with_name(f"{path.name}.lock")


class Room:
    """The bounded content of a folder; whoever asks for room holds the lock of the file that is to come.

    Args:
        held_limit: tells others of the limit, from the first `reserve` on for as long as it lives; None: one of this object.
    """

    def __init__(self, folder: Path, limit_bytes: int, held_limit: SharedLock | None = None) -> None:
        self._folder, self._limit_bytes, self._held_limit = folder, limit_bytes, held_limit or SharedLock()

    def used_bytes(self) -> int:
        """Returns the bytes of all files, whole or not, with what is promised to downloads under way."""
        return self._scan(spare=None).total_bytes

    def reserve(self, path: Path, size: int, announce: Callable[[int], None]) -> bool:
        """Makes room for `path` within the limit, removing what was not used for longest, and promises it; False: others have it all."""
        with locked(self._folder / "lock"):
            limit_bytes = self._greatest_limit()
            content = self._scan(spare=path)
            if content.kept_bytes + size > limit_bytes:
                return False
            excess = content.total_bytes + size - limit_bytes
            if self._remove(content, excess) < excess:  # somebody has just begun to go on with one
                return False
            announce(size)
            return True

    def give_up(self, needed_bytes: int, free_bytes: int, spare: Path) -> int:
        """Removes files, since the disk is full, and returns their bytes, not counting `spare`'s; none where all would not be enough.

        Args:
            needed_bytes: what is to be written.
            free_bytes: what the disk has free.
        """
        with locked(self._folder / "lock"):
            content = self._scan(spare)
            if free_bytes + sum(file.size for file in content.free_to_go) < needed_bytes:
                return 0
            return self._remove(content, needed_bytes)

    def _greatest_limit(self) -> int:
        """Returns the greatest limit of those who use the folder, ours among them; the caller holds the folder's lock."""
        limits = self._folder / "limits"
        self._held_limit.hold(limits / str(self._limit_bytes))
        others = [path for path in limits.iterdir() if path.name.isdecimal() and int(path.name) > self._limit_bytes]
        return max([self._limit_bytes, *(int(path.name) for path in others if is_locked(path))])

    def _scan(self, spare: Path | None) -> _Content:
        """Returns what there is, without `spare` in any form."""
        sizes: dict[str, dict[str, os.stat_result]] = {}
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # another process finished or removed it
                    self._take_in(entry, sizes)
        free_to_go, kept, latest_ns = [], 0, time.time_ns() + _FUTURE_NS
        for digest, forms in sizes.items():
            path = self._folder / digest
            if spare is not None and digest == spare.name:
                continue
            if "" in forms:
                free_to_go.append(_Held(_used_ns(forms[""], latest_ns), path, forms[""].st_size))
            unfinished = forms[".part"].st_size if ".part" in forms else 0
            if ".lock" in forms and is_locked(lock_path(path)):
                kept += 0 if "" in forms else max(unfinished, forms[".lock"].st_size)
            elif ".part" in forms:
                free_to_go.append(_Held(_used_ns(forms[".part"], latest_ns), part_path(path), unfinished))
        return _Content(sorted(free_to_go), kept)

    def _take_in(self, entry: "os.DirEntry[str]", sizes: dict[str, dict[str, os.stat_result]]) -> None:
        if found := _NAME.fullmatch(entry.name):
            sizes.setdefault(found[1], {})[found[2]] = entry.stat()
        elif _LEFT_BY_A_WRITER.fullmatch(entry.name) and time.time() - entry.stat().st_mtime > _ABANDONED_AFTER_S:
            Path(entry.path).unlink(missing_ok=True)

    def _remove(self, content: _Content, excess_bytes: int) -> int:
        gone = 0
        for file in content.free_to_go:
            if gone >= excess_bytes:
                break
            if file.path.suffix == ".part":
                gone += file.size if _remove_part(file.path) else 0
            else:
                file.path.unlink(missing_ok=True)
                gone += file.size
        return gone


def _used_ns(about: os.stat_result, latest_ns: int) -> int:
    """Returns when a file was last used; one of the future counts as unused for longest, else it would stay for good."""
    return about.st_mtime_ns if about.st_mtime_ns <= latest_ns else 0


def _remove_part(part: Path) -> bool:
    """Removes an unfinished file and its note, unless somebody has begun to go on with it."""
    held = try_lock(lock_path(part.with_suffix("")))
    if held is None:
        return False
    with held:
        part.unlink(missing_ok=True)
        part.with_name(f"{part.name}.json").unlink(missing_ok=True)
    return True
