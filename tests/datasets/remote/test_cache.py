"""The cache of whole files: its bound, what goes first, who waits for whom, and what a full disk or a lost lock does to it."""

import contextlib
import fcntl
import hashlib
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bamboo.cli.errors import DataError, UserError
from bamboo.datasets.remote import cache as caches
from bamboo.datasets.remote import locks
from bamboo.datasets.remote.cache import Remote, ShardCache
from bamboo.datasets.remote.fetching import Fetching, fetches_to
from bamboo.datasets.remote.locks import is_locked, locked, try_lock
from bamboo.datasets.remote.prefetch import Prefetcher
from bamboo.datasets.remote.room import Room
from bamboo.datasets.remote.transport import Patience
from tests.datasets.remote.content import SIZE, held, set_used
from tests.loopback import Loopback, cut, good, longer, slowly, status


def body_of(cache: ShardCache, wanted: Remote) -> bytes:
    """Returns all bytes of a file, read through the cache."""
    file = cache.open(wanted)
    return os.pread(file.descriptor, 2 * SIZE, 0)


def open_told(cache: ShardCache, wanted: Remote, states: list[Fetching]) -> None:
    """Opens a file and notes what the reading thread says of it."""
    with fetches_to(states.append):
        cache.open(wanted)


def bytes_on_disk(cache: ShardCache) -> int:
    """Returns the bytes of all files, whole and unfinished, while nothing can be removed; one that is being renamed counts once."""
    sizes: dict[str, int] = {}
    with locked(cache.folder / "lock"):
        for path in [path for path in cache.folder.iterdir() if path.suffix in ("", ".part") and path.name != "lock"]:
            with contextlib.suppress(FileNotFoundError):
                sizes[path.stem] = max(sizes.get(path.stem, 0), path.stat().st_size)
    return sum(sizes.values())


def open_in(process: int) -> list[str]:
    """Returns the files that a process has open."""
    found = []
    for link in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(str(link.readlink()))
    return found


def leftovers(cache: ShardCache) -> list[str]:
    """Returns the names of all that is not a whole file, an index, or the one lock that stays."""
    return sorted(path.name for path in cache.folder.iterdir() if len(path.name) != 64 and path.name not in ("lock", "indexes", "limits"))


def test_the_longest_unused_goes_first(cache: ShardCache, server: Loopback, files: list[Remote]) -> None:
    """Three fit; each further one pushes out the one whose last use is oldest, a second reading counting as a use."""
    for number in range(3):
        assert hashlib.sha256(body_of(cache, files[number])).hexdigest() == files[number].sha256
        set_used(cache, files[number], 300 - number)
    body_of(cache, files[0])  # a hit, and so the newest
    body_of(cache, files[3])
    assert held(cache, files) == [0, 2, 3]
    body_of(cache, files[4])
    assert held(cache, files) == [0, 3, 4]
    assert len(server.requests) == 5
    assert leftovers(cache) == []


def test_a_removed_file_stays_readable_for_its_readers(cache: ShardCache, files: list[Remote]) -> None:
    """A file opened, then pushed out: its bytes are still there for the one who has it open."""
    file = cache.open(files[0])
    for number in (1, 2, 3):
        body_of(cache, files[number])
    assert held(cache, files) == [1, 2, 3]
    assert hashlib.sha256(os.pread(file.descriptor, SIZE, 0)).hexdigest() == files[0].sha256


def test_the_bound_holds_under_many_readers(cache: ShardCache, files: list[Remote]) -> None:
    """Six threads that read at random, with room for three files: right bytes always, and never more on disk than the limit."""
    wrong: list[object] = []
    most = 0
    cache.folder.mkdir()

    def read(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(12):
            wanted = draw.choice(files)
            if hashlib.sha256(body_of(cache, wanted)).hexdigest() != wanted.sha256:
                wrong.append(wanted)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        most = max(most, bytes_on_disk(cache))
        time.sleep(0.002)
    assert not wrong
    assert 2 * SIZE < most <= cache.limit_bytes
    assert leftovers(cache) == []


def test_two_at_once_fetch_once(cache: ShardCache, server: Loopback, files: list[Remote]) -> None:
    """Four threads that want one file of a slow server: one request, and the others say that they wait."""
    server.script = [slowly(20_000, 0.02)]
    states: list[Fetching] = []
    threads = [threading.Thread(target=open_told, args=(cache, files[0], states)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.requests) == 1
    assert states.count(Fetching.FETCH) == 1
    assert Fetching.WAIT in states
    assert states.count(Fetching.DONE) == 4


def test_leftovers_count_and_are_gone_on_with(cache: ShardCache, server: Loopback, files: list[Remote], waits: list[float]) -> None:
    """A download given up half-way: counted by the bound, gone on with by the next that wants it, and removed when others need room."""
    server.script = [cut(150_000), *(status(500) for _ in range(3))]
    with pytest.raises(DataError, match="150,000 bytes are kept"):
        cache.open(files[0])
    assert Room(cache.folder, cache.limit_bytes).used_bytes() == 150_000
    body_of(cache, files[0])
    assert server.asked_for("0.tar")[-1] == "bytes=150000-"
    server.script = [cut(150_000), *(status(500) for _ in range(3))]
    with pytest.raises(DataError):
        cache.open(files[1])
    for number in (2, 3, 4):
        body_of(cache, files[number])
    assert held(cache, files) == [2, 3, 4]
    assert leftovers(cache) == []


def test_room_that_is_promised_is_waited_for(cache: ShardCache, files: list[Remote]) -> None:
    """All of the limit promised to a download under way elsewhere: another one waits, and goes on when it ends."""
    cache.folder.mkdir()
    other = try_lock(cache.folder / f"{'0' * 64}.lock")
    assert other is not None
    assert Room(cache.folder, cache.limit_bytes).reserve(cache.folder / ("0" * 64), cache.limit_bytes, other.announce)
    states: list[Fetching] = []
    thread = threading.Thread(target=open_told, args=(cache, files[0], states))
    thread.start()
    time.sleep(0.3)
    assert held(cache, files) == []
    assert set(states) == {Fetching.WAIT}
    other.release()
    thread.join(10)
    assert held(cache, files) == [0]


def test_a_damaged_file_is_fetched_again(cache: ShardCache, server: Loopback, files: list[Remote]) -> None:
    """A cached file cut short by somebody: the next opening sees its size and fetches it anew."""
    body_of(cache, files[0])
    os.truncate(cache.folder / files[0].sha256, 1000)
    assert hashlib.sha256(body_of(cache, files[0])).hexdigest() == files[0].sha256
    assert len(server.requests) == 2


WRONG = [
    (lambda server: server.files.update({"0.tar": bytes(SIZE)}), "0.tar: sha256 is .*dataset.json"),
    (lambda server: server.files.update({"0.tar": bytes(SIZE + 1)}), "0.tar: has 200,001 bytes, dataset.json says 200,000"),
    (lambda server: server.script.extend([longer(1000)] * 9), "0.tar: has 201,000 bytes, dataset.json says 200,000"),
    (lambda server: server.files.pop("0.tar"), "0.tar: HTTP 404"),
]


@pytest.mark.parametrize(("spoil", "message"), WRONG, ids=["swapped", "longer", "lied about", "missing"])
def test_another_file_than_the_manifest_says_is_refused(
    cache: ShardCache, server: Loopback, files: list[Remote], spoil: Callable[[Loopback], object], message: str
) -> None:
    """Other bytes of the same size, another size, a lie, nothing: each named, and nothing of it kept."""
    spoil(server)
    with pytest.raises(DataError, match=message):
        cache.open(files[0])
    assert held(cache, files) == []
    assert leftovers(cache) == []


def test_a_file_that_never_fits_is_the_users_mistake(cache: ShardCache, files: list[Remote]) -> None:
    """A limit below one file: the setting, its value and what it must be."""
    small = ShardCache(cache.folder, 150_000)
    with pytest.raises(UserError, match=r"data\.cache_bytes=150,000: must hold one shard .*data\.cache_bytes>=200000"):
        small.open(files[0])


def test_hashes_that_are_paths_are_refused(cache: ShardCache, files: list[Remote]) -> None:
    """A manifest from elsewhere whose hash leads to a file beside the cache, of the right size: not opened, not touched, named."""
    cache.folder.mkdir()
    beside = cache.folder.parent / "secret"
    beside.write_bytes(bytes(SIZE))
    os.utime(beside, (0, 0))
    wanted = files[0]._replace(sha256="../secret")
    Prefetcher(cache).expect([wanted])
    with pytest.raises(DataError, match=r"'\.\./secret' for its sha256"):
        cache.open(wanted)
    with pytest.raises(DataError, match="for its sha256"):
        cache.index(files[0].url, "../secret")
    assert beside.stat().st_mtime == 0


def test_a_full_disk_costs_the_oldest_files(mount_disk: Callable[[str], Path], server: Loopback, patience: Patience) -> None:
    """A real disk of 1 MiB under a limit of a gigabyte: old files make room for new ones, whose bytes are right."""
    cache = ShardCache(mount_disk("1m") / "cache", 10**9, patience)
    bodies = [random.Random(number).randbytes(400_000) for number in range(4)]
    for number, body in enumerate(bodies):
        server.files[f"{number}.tar"] = body
        wanted = Remote(server.url(f"{number}.tar"), hashlib.sha256(body).hexdigest(), len(body))
        file = cache.open(wanted)
        assert os.pread(file.descriptor, 10**6, 0) == body
        set_used(cache, wanted, 100 - number)
        del file
    assert leftovers(cache) == []
    assert (cache.folder / hashlib.sha256(bodies[3]).hexdigest()).exists()


def test_a_disk_full_of_other_things_is_named(mount_disk: Callable[[str], Path], files: list[Remote], patience: Patience) -> None:
    """A real disk with 100 KB left and nothing of the cache on it: folder, needed and free bytes, the settings; nothing is left there."""
    disk = mount_disk("1m")
    (disk / "other").write_bytes(bytes(950_000))
    cache = ShardCache(disk / "cache", 10**9, patience)
    with pytest.raises(UserError, match=r"cache: the disk is full: .*0\.tar needs 200,000 more bytes, .* data\.cache .*data\.cache_bytes"):
        cache.open(files[0])
    assert leftovers(cache) == []


def test_a_disk_that_fills_up_meanwhile(
    mount_disk: Callable[[str], Path], server: Loopback, files: list[Remote], patience: Patience
) -> None:
    """Another program takes the room between the check and the last byte: the cache gives up an old file and goes on with the rest."""
    disk = mount_disk("1m")
    cache = ShardCache(disk / "cache", 10**9, patience)
    body_of(cache, files[1])

    def fill(answer: object) -> None:
        (disk / "other").write_bytes(bytes(700_000))
        good(answer)  # type: ignore[arg-type]  # the server passes an Answer

    server.script = [fill]
    assert hashlib.sha256(body_of(cache, files[0])).hexdigest() == files[0].sha256
    assert held(cache, files) == [0]


def test_a_lock_is_not_inherited(tmp_path: Path) -> None:
    """A forked child outlives the lock's holder: the lock is free as soon as the holder lets go, and the child has no copy of it."""
    path = tmp_path / "some.lock"
    mine = try_lock(path)
    assert mine is not None
    assert try_lock(path) is None
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    wait_until(lambda: str(path) not in open_in(child))
    mine.release()
    assert not is_locked(path)
    assert not path.exists()
    os.kill(child, 9)
    os.waitpid(child, 0)


def wait_until(true: Callable[[], bool]) -> None:
    """Waits up to five seconds."""
    deadline = time.monotonic() + 5
    while not true():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)


def test_a_lock_file_that_goes_while_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its holder removes it between another one's opening and locking it: the lock is then on the file that others see."""
    path, real = tmp_path / "some.lock", fcntl.flock
    calls: list[int] = []

    def flock(descriptor: int, operation: int) -> None:
        if not calls:
            path.unlink()
        calls.append(descriptor)
        real(descriptor, operation)

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    mine = try_lock(path)
    assert mine is not None
    assert len(calls) > 1
    assert try_lock(path) is None
    mine.release()
    assert not path.exists()


def test_what_is_expected_is_fetched_in_order_as_far_as_it_fits(cache: ShardCache, server: Loopback, files: list[Remote]) -> None:
    """Five expected, room for three, of which the first fails for good and the second is being fetched by others: two requests."""
    server.lasting = {"0.tar": status(404)}
    cache.folder.mkdir()
    other = try_lock(cache.folder / f"{files[1].sha256}.lock")
    assert other is not None
    Prefetcher(cache).expect(files[:5])
    wait_until(lambda: held(cache, files) == [2])
    time.sleep(0.1)
    assert [path for path, _, _ in server.requests] == ["/0.tar", "/2.tar"]
    other.release()


def test_expecting_is_using(cache: ShardCache, files: list[Remote]) -> None:
    """The oldest file of a full cache is expected: another one goes in its place."""
    for number in range(3):
        body_of(cache, files[number])
        set_used(cache, files[number], 300 - number)
    Prefetcher(cache).expect([files[0]])
    body_of(cache, files[3])
    assert held(cache, files) == [0, 2, 3]


def test_the_default_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """BAMBOO_CACHE, then XDG_CACHE_HOME, then the home."""
    monkeypatch.setenv("BAMBOO_CACHE", str(tmp_path / "a"))
    assert ShardCache().folder == tmp_path / "a/shards"
    monkeypatch.delenv("BAMBOO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert ShardCache().folder == tmp_path / "b/bamboo/shards"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert ShardCache().folder == Path.home() / ".cache/bamboo/shards"
    assert ShardCache().limit_bytes == caches.DEFAULT_LIMIT_BYTES == 50 * 10**9
