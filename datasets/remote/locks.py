"""Locks between processes that cannot go stale: the kernel lets go of them when their holder dies, however it dies.

A lock is on an open file (`flock`), so two threads of one process exclude each other too. A forked child would share the parent's, so it
closes its copies; `flock` does the same over NFS only where the server supports it.
"""

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from ...cli.errors import UserError

_held: set[int] = set()
_forks_watched = False
_forking = threading.RLock()
"""Held while a descriptor is opened and noted, or closed, and while the process forks, so that no child has one that is not noted."""


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
    """Returns the lock, or None at once where somebody, also another thread, holds it; raises UserError where there are no locks."""
    while True:
        descriptor = _open(path)
        if not _flock(path, descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
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
    """Holds a lock that is held for moments only, waiting for it; its file stays. Raises UserError where there are no locks."""
    descriptor = _open(path)
    _flock(path, descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        _let_go(descriptor)


class SharedLock:
    """At most one lock that others may share, held for as long as this object lives; a forked child's or a copy's holds nothing yet."""

    def __init__(self) -> None:
        self._descriptor, self._owner = -1, 0

    def hold(self, path: Path) -> None:
        """Locks `path`, unless that is done, waiting for those who have it alone; raises UserError where there are no locks."""
        if self._owner == os.getpid() and path.exists():
            return
        self.release()
        path.parent.mkdir(exist_ok=True)
        descriptor = _open(path)
        _flock(path, descriptor, fcntl.LOCK_SH)
        self._descriptor, self._owner = descriptor, os.getpid()

    def release(self) -> None:
        """Lets go of what this process holds; the file stays."""
        if self._owner == os.getpid():
            _let_go(self._descriptor)
        self._owner = 0

    def __del__(self) -> None:
        self.release()

    def __reduce__(self) -> tuple[type["SharedLock"], tuple[()]]:
        return type(self), ()


def _open(path: Path) -> int:
    global _forks_watched
    with _forking:
        if not _forks_watched:
            os.register_at_fork(before=_forking.acquire, after_in_parent=_forked, after_in_child=_forget)
            _forks_watched = True
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        _held.add(descriptor)
        return descriptor


def _flock(path: Path, descriptor: int, operation: int) -> bool:
    """Locks; returns False where others hold the lock and it is not to be waited for; where it raises, the descriptor is closed."""
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        return False
    except OSError as error:
        _let_go(descriptor)
        remedy = "set it (or BAMBOO_CACHE) to a folder of a local disk"
        raise UserError(f"data.cache={path.parent}: has no file locks ({error.strerror}); {remedy}") from None
    return True


def _let_go(descriptor: int) -> None:
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing alone would leave it to a child that was forked meanwhile
    with _forking:
        _held.discard(descriptor)
        os.close(descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _forked() -> None:
    with contextlib.suppress(RuntimeError):  # the fork had begun before the hooks were there
        _forking.release()


def _forget() -> None:
    """In a forked child: closes the parent's locks, which stay locked."""
    _forked()
    for descriptor in list(_held):
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()
