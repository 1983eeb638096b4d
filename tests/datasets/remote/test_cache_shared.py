"""The cache between jobs: what counts as a use, whose limit counts, clocks that were wrong, disks without locks or without writing."""

import errno
import os
import pickle
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bamboo.cli.errors import UserError
from bamboo.datasets.remote import locks
from bamboo.datasets.remote.cache import Remote, ShardCache
from bamboo.datasets.remote.locks import SharedLock, try_lock
from bamboo.datasets.remote.prefetch import Prefetcher
from bamboo.datasets.remote.room import Room
from bamboo.datasets.remote.transport import Patience
from bamboo.datasets.shards import Shards
from tests.datasets.remote.content import SIZE, held, set_used
from tests.loopback import Loopback


def descriptors() -> int:
    """Returns how many files this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def has_open(path: Path) -> bool:
    """Returns whether this process has the file open."""
    return any(link.is_symlink() and str(link.readlink()) == str(path) for link in Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize("expected", [False, True])
def test_a_use_counts_however_short_the_last_one_lies_back(cache: ShardCache, files: list[Remote], expected: bool) -> None:
    """Three files used tenths of a second ago, the oldest one opened or expected again: another one goes in its place."""
    for number in range(3):
        cache.open(files[number])
        set_used(cache, files[number], 0.9 - 0.3 * number)
    if expected:
        Prefetcher(cache).expect([files[0]])
    else:
        cache.open(files[0])
    cache.open(files[3])
    assert held(cache, files) == [0, 2, 3]


def test_finding_what_another_has_fetched_is_not_using(cache: ShardCache, files: list[Remote]) -> None:
    """The oldest of three files is prefetched, long after it was expected: nothing is fetched, and it goes first all the same."""
    for number in range(3):
        cache.open(files[number])
        set_used(cache, files[number], 300 - number)
    assert cache.prefetch(files[0])
    cache.open(files[3])
    assert held(cache, files) == [1, 2, 3]


def test_a_file_of_the_future_goes_first(cache: ShardCache, files: list[Remote]) -> None:
    """A file that came while the clock was years ahead, unused since: it goes before those that are used, and a new use heals it."""
    for number in range(3):
        cache.open(files[number])
    set_used(cache, files[1], -1e8)
    set_used(cache, files[2], -1e8)
    cache.open(files[2])
    cache.open(files[3])
    assert held(cache, files) == [0, 2, 3]


def test_a_filled_cache_on_a_read_only_disk(mount_disk: Callable[[str], Path], server: Loopback, pool: Path, patience: Patience) -> None:
    """A pool read once, the disk then mounted read-only: opened and read from there, with nothing but the manifest fetched."""
    disk = mount_disk("4m")
    here, address = Shards.open(pool / "train"), server.serve(pool / "train", "train")
    filling = Shards.open(address, cache=ShardCache(disk / "cache", 10**9, patience))
    assert all(filling.read(sample) == here.read(sample) for sample in range(101))
    del filling
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    server.requests.clear()
    shards = Shards.open(address, cache=ShardCache(disk / "cache", 10**9, patience))
    assert all(shards.read(sample) == here.read(sample) for sample in range(101))
    assert [path for path, _, _ in server.requests] == ["/train/dataset.json"]


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_disk_without_locks_is_named(cache: ShardCache, files: list[Remote], monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """flock that the file system does not have: the setting and the remedy, for shards and indexes, and no descriptor stays open."""

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    before = descriptors()
    message = rf"data\.cache={cache.folder}: has no file locks \({os.strerror(code)}\); set it .*local disk"
    for _ in range(3):
        with pytest.raises(UserError, match=message):
            cache.open(files[0])
        with pytest.raises(UserError, match=message):
            cache.index(files[0].url, files[0].sha256)
        with pytest.raises(UserError, match=message), locks.locked(cache.folder / "lock"):
            pass
    assert descriptors() == before


def promise(cache: ShardCache, digest: str, size: int) -> locks.HeldLock:
    """Makes a promise of room, as a download under way does, and returns its lock."""
    path = cache.folder / digest
    mine = try_lock(path.with_name(f"{digest}.lock"))
    assert mine is not None
    assert Room(cache.folder, cache.limit_bytes, cache._held_limit).reserve(path, size, mine.announce)
    return mine


def test_the_greatest_limit_counts_while_its_job_lives(cache: ShardCache, files: list[Remote]) -> None:
    """A job with room for five files and one with room for three: both keep five, though more than three are promised; then three."""
    large = ShardCache(cache.folder, 5 * SIZE, cache.patience)
    large.open(files[0])
    under_way = promise(large, "0" * 64, 4 * SIZE)
    thread = threading.Thread(target=cache.open, args=(files[1],), daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert held(cache, files) == [1]  # five with what is promised
    under_way.release()
    for number in (2, 3, 4, 5):
        cache.open(files[number])
    assert held(cache, files) == [1, 2, 3, 4, 5]
    del large
    cache.open(files[6])
    assert held(cache, files) == [4, 5, 6]
    assert [path.name for path in (cache.folder / "limits").iterdir()] == [str(cache.limit_bytes)]


def test_a_limit_is_held_by_those_who_use_it(cache: ShardCache, files: list[Remote]) -> None:
    """A copy and a forked child do not hold the limit of the first one; the child lets go of nothing that is the parent's."""
    large = ShardCache(cache.folder, 5 * SIZE, cache.patience)
    large.open(files[0])
    path = cache.folder / "limits" / str(large.limit_bytes)
    copy = pickle.loads(pickle.dumps(large))
    assert (copy.folder, copy.limit_bytes) == (large.folder, large.limit_bytes)
    child = os.fork()
    if child == 0:
        before = descriptors()
        large._held_limit.release()
        os._exit(0 if descriptors() == before else 1)
    assert os.waitpid(child, 0) == (child, 0)
    assert try_lock(path) is None
    del large
    free = try_lock(path)
    assert free is not None
    free.release()


def test_forks_while_locks_are_taken(tmp_path: Path) -> None:
    """A thread that takes and drops locks while the process forks: no child has a descriptor of the lock file."""
    path, ended = tmp_path / "some.lock", threading.Event()

    def work() -> None:
        while not ended.is_set():
            with locks.locked(path):
                pass

    thread = threading.Thread(target=work)
    thread.start()
    inherited = 0
    for _ in range(40):
        child = os.fork()
        if child == 0:
            os._exit(1 if has_open(path) else 0)
        inherited += os.waitpid(child, 0)[1] != 0
    ended.set()
    thread.join()
    assert inherited == 0


def test_a_fork_waits_for_a_descriptor_to_be_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork in the middle of opening a lock file: the child has no copy of it."""
    path, real, opening = tmp_path / "some.lock", os.open, threading.Event()
    with locks.locked(path):
        pass

    def slow_open(*arguments: object, **more: object) -> int:
        descriptor: int = real(*arguments, **more)  # type: ignore[arg-type]  # whatever the caller gives
        opening.set()
        time.sleep(0.2)
        return descriptor

    monkeypatch.setattr(locks.os, "open", slow_open)
    shared = SharedLock()
    thread = threading.Thread(target=shared.hold, args=(path,))
    thread.start()
    opening.wait()
    child = os.fork()
    if child == 0:
        os._exit(1 if has_open(path) else 0)
    assert os.waitpid(child, 0) == (child, 0)
    thread.join()
    monkeypatch.undo()
    assert try_lock(path) is None
    shared.release()
