"""Room in a cache folder: what lies there, what is promised to downloads under way, and what goes first.

Files are called by their SHA-256: `HASH` is whole, `HASH.part` (with `HASH.part.json`) is not, `HASH.lock` is held by whoever downloads
it and is as long as the file will be. Nothing else is touched. All is decided under one lock, which is held for moments.
"""

import contextlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from .locks import is_locked, locked, try_lock

_NAME = re.compile(r"([0-9a-f]{64})(|\.part|\.lock|\.part\.json)")
_LEFT_BY_A_WRITER = re.compile(r"\.[0-9a-f]{64}\..*\.tmp")
_ABANDONED_AFTER_S = 3600.0


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
    """The bounded content of a folder; whoever asks for room holds the lock of the file that is to come."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder, self._limit_bytes = folder, limit_bytes

    def used_bytes(self) -> int:
        """Returns the bytes of all files, whole or not, with what is promised to downloads under way."""
        return self._scan(spare=None).total_bytes

    def reserve(self, path: Path, size: int, announce: Callable[[int], None]) -> bool:
        """Makes room for `path` within the limit, removing what was not used for longest, and promises it; False: others have it all."""
        with locked(self._folder / "lock"):
            content = self._scan(spare=path)
            if content.kept_bytes + size > self._limit_bytes:
                return False
            excess = content.total_bytes + size - self._limit_bytes
            if self._remove(content, excess) < excess:  # somebody has just begun to go on with one
                return False
            announce(size)
            return True

    def give_up(self, needed_bytes: int, spare: Path) -> int:
        """Removes files of `needed_bytes` in all, since the disk is full; returns how many bytes went, not counting `spare`'s."""
        with locked(self._folder / "lock"):
            return self._remove(self._scan(spare), needed_bytes)

    def _scan(self, spare: Path | None) -> _Content:
        """Returns what there is, without `spare` in any form."""
        sizes: dict[str, dict[str, os.stat_result]] = {}
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # another process finished or removed it
                    self._take_in(entry, sizes)
        free_to_go, kept = [], 0
        for digest, forms in sizes.items():
            path = self._folder / digest
            if spare is not None and digest == spare.name:
                continue
            if "" in forms:
                free_to_go.append(_Held(forms[""].st_mtime_ns, path, forms[""].st_size))
            unfinished = forms[".part"].st_size if ".part" in forms else 0
            if ".lock" in forms and is_locked(lock_path(path)):
                kept += 0 if "" in forms else max(unfinished, forms[".lock"].st_size)
            elif ".part" in forms:
                free_to_go.append(_Held(forms[".part"].st_mtime_ns, part_path(path), unfinished))
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


def _remove_part(part: Path) -> bool:
    """Removes an unfinished file and its note, unless somebody has begun to go on with it."""
    held = try_lock(lock_path(part.with_suffix("")))
    if held is None:
        return False
    with held:
        part.unlink(missing_ok=True)
        part.with_name(f"{part.name}.json").unlink(missing_ok=True)
    return True
