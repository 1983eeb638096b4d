"""Locks between processes that cannot go stale: the kernel lets go of them when their holder dies, however it dies.

A lock is on an open file (`flock`), so two threads of one process exclude each other too. A forked child would share the parent's, so it
closes its copies; `flock` does the same over NFS only where the server supports it.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

_held: set[int] = set()
_forks_watched = False


class HeldLock:
    """A lock file of ours, which is removed when the lock is released; its size is a number that everybody may read."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor

    def announce(self, number: int) -> None:
        """Makes `number` the file's size; it stays without content, so this works on a full disk."""
        os.ftruncate(self._descriptor, number)

    def release(self) -> None:
        """Removes the file and lets go."""
        self._path.unlink(missing_ok=True)
        _let_go(self._descriptor)

    def __enter__(self) -> "HeldLock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def try_lock(path: Path) -> HeldLock | None:
    """Returns the lock, or None at once where somebody, also another thread, holds it."""
    while True:
        descriptor = _open(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _let_go(descriptor)
            return None
        if _is_still(path, descriptor):  # else its holder removed it between our opening and locking it
            return HeldLock(path, descriptor)
        _let_go(descriptor)


def is_locked(path: Path) -> bool:
    """Returns whether somebody holds the lock; a file left by a killed process is removed on the way."""
    if not path.exists():
        return False
    held = try_lock(path)
    if held is not None:
        held.release()
    return held is None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock that is held for moments only, waiting for it; its file stays."""
    descriptor = _open(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        _let_go(descriptor)


def _open(path: Path) -> int:
    global _forks_watched
    if not _forks_watched:
        os.register_at_fork(after_in_child=_forget)
        _forks_watched = True
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    _held.add(descriptor)
    return descriptor


def _let_go(descriptor: int) -> None:
    _held.discard(descriptor)
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing alone would leave it to a child that was forked meanwhile
    os.close(descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _forget() -> None:
    """In a forked child: closes the parent's locks, which stay locked."""
    for descriptor in list(_held):
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()
