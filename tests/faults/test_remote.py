"""Shards from elsewhere under faults of servers, disks and processes: the stream goes on identically, or stops with shard and cause."""

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bamboo.cli.errors import DataError, UserError
from bamboo.datasets.augment.crops import TrainView
from bamboo.datasets.plan.order import Order
from bamboo.datasets.remote.cache import ShardCache
from bamboo.datasets.remote.locks import is_locked, locked
from bamboo.datasets.remote.transport import Patience
from bamboo.datasets.shards import Shards
from bamboo.datasets.stream.batches import TrainBatches
from bamboo.datasets.stream.loader import WorkerKind, load_batches
from tests.loopback import Answer, Behaviour, Loopback, cut, good, loopback, slowly, stall, status
from tests.object_store import ObjectStore, object_store, slow_down

VIEW = TrainView(16, scale=(0.3, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5, interpolation="bilinear")
BATCHES = range(17)  # two epochs of 101 samples in batches of 12
Rows = list[tuple[int, int, bytes]]


@pytest.fixture
def server() -> Iterator[Loopback]:
    """An HTTP server without files."""
    with loopback() as running:
        yield running


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """moto's S3 server behind a proxy, and the environment that leads clients to it."""
    with object_store() as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    """Room for three of the six shards, and waits of hundredths of a second."""
    return ShardCache(tmp_path / "cache", 650_000, Patience(stall_s=0.4, attempts=8, first_wait_s=0.01, longest_wait_s=0.1))


def rows(shards: Shards, workers: int = 0, kind: WorkerKind = "processes") -> Rows:
    """Returns (id, label, pixels) of two epochs."""
    source = TrainBatches(shards, Order(shards.shard_counts, seed=0, window=2), VIEW, 12, 0, 1)
    found = []
    for batch in load_batches(source, BATCHES, workers=workers, kind=kind):
        pixels = [image.numpy().tobytes() for image in batch.images]
        found += zip(batch.ids.tolist(), batch.labels.tolist(), pixels, strict=True)
    return found


@pytest.fixture(scope="module")
def expected(pool: Path) -> Rows:
    """The rows from the folder on this disk."""
    return rows(Shards.open(pool / "train"))


def wait_until(true: Callable[[], bool]) -> None:
    """Waits up to twenty seconds."""
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.005)


def not_whole(folder: Path) -> list[str]:
    """Returns what lies in a cache beside whole files, once nobody fetches any more; lock files that nobody holds go by looking."""
    wait_until(lambda: not any(is_locked(path) for path in folder.glob("*.lock")))
    return sorted(path.name for path in folder.iterdir() if len(path.name) != 64 and path.name not in ("lock", "indexes", "limits"))


def trouble(behaviours: list[Behaviour], seed: int) -> list[Behaviour]:
    """Returns a row of answers with a fault in about each third place, never more than three in a row."""
    draw, made = random.Random(seed), []
    for _ in range(30):
        made += [*draw.choices(behaviours, k=draw.choice([0, 1, 1, 2])), good]
    return made


HTTP_FAULTS = [cut(0), cut(70_000), cut(150_000), status(503, Retry_After="0"), status(429), status(500), stall(1000, 0.6)]


@pytest.mark.parametrize(("workers", "kind"), [(0, "processes"), (2, "processes"), (2, "threads")])
def test_a_bad_http_server(server: Loopback, cache: ShardCache, pool: Path, expected: Rows, workers: int, kind: WorkerKind) -> None:
    """Cuts, 429, 503 with Retry-After, stalls, with room for three shards of six: the rows of the local folder; then warm once more."""
    address = server.serve(pool / "train", "train")
    shards = Shards.open(address, cache=cache)
    server.script = trouble(HTTP_FAULTS, workers)
    assert rows(shards, workers, kind) == expected
    server.script.clear()
    large = ShardCache(cache.folder, 10**9, cache.patience)
    assert rows(Shards.open(address, cache=large), workers, kind) == expected
    server.requests.clear()
    assert rows(Shards.open(address, cache=large), workers, kind) == expected
    assert [path for path, _, _ in server.requests] == ["/train/dataset.json"]
    assert not [name for name in not_whole(cache.folder) if ".part" not in name]  # a worker may end with a fetch under way


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_object_store(store: ObjectStore, cache: ShardCache, pool: Path, expected: Rows, workers: int) -> None:
    """moto behind a proxy that answers 500 and 503 SlowDown, cuts and stalls: the rows of the local folder."""
    address = store.put(pool / "train", "train")
    shards = Shards.open(address, cache=cache)

    def slow_down_now(answer: Answer) -> None:
        answer.status, answer.headers = 503, {"Content-Length": "0", "Retry-After": "0"}
        answer.send(b"")

    store.script = trouble([slow_down_now, status(500), cut(1000)], workers)
    store.script[5] = stall(100, 0.6)
    assert rows(shards, workers) == expected
    assert not [name for name in not_whole(cache.folder) if ".part" not in name]


LASTING: list[tuple[int, Behaviour, str]] = [
    (0, status(404), r"shard-000002\.tar\?…: HTTP 404"),
    (2, status(403), r"shard-000002\.tar\?…: HTTP 403"),
    (0, status(503), r"shard-000002\.tar\?…: HTTP 503 .*attempt 8 of 8"),
    (2, status(429, Retry_After="9999"), r"shard-000002\.tar\?…: HTTP 429 .*asks to wait 9999 s"),
    (0, cut(1000), r"shard-000002\.tar\?…: the connection was cut after [0-9]+,000 of 204,800 bytes"),
    (2, lambda answer: answer.send(bytes(len(answer.body) - answer.start)), r"shard-000002\.tar\?…: sha256 is .*dataset\.json"),
]


@pytest.mark.parametrize(("workers", "behaviour", "message"), LASTING, ids=["404", "403", "503", "429", "cut", "swapped"])
def test_what_lasts_stops_the_stream(
    server: Loopback, cache: ShardCache, pool: Path, workers: int, behaviour: Behaviour, message: str
) -> None:
    """One shard that cannot be had, behind a signed address: a DataError that names it and the cause, and not the signature."""
    shards = Shards.open(server.serve(pool / "train", "train") + "?sig=5ec2e7", cache=cache)
    server.lasting = {"train/shard-000002.tar": behaviour}
    with pytest.raises(DataError, match=message) as caught:
        rows(shards, workers)
    assert "5ec2e7" not in str(caught.value)


def test_an_object_that_is_gone_stops_the_stream(store: ObjectStore, cache: ShardCache, pool: Path) -> None:
    """The same from a bucket."""
    shards = Shards.open(store.put(pool / "train", "train"), cache=cache)
    store.lasting = {"images/train/shard-000002.tar": status(404)}
    with pytest.raises(DataError, match=r"s3://images/train/shard-000002\.tar: FileNotFoundError"):
        rows(shards)
    store.lasting = {"images/train/shard-000002.tar": slow_down}
    with pytest.raises(DataError, match=r"s3://images/train/shard-000002\.tar: HTTP 503"):
        rows(Shards.open("s3://images/train", cache=ShardCache(cache.folder, 650_000, Patience(attempts=1))))


def test_a_full_disk_under_the_stream(mount_disk: Callable[[str], Path], server: Loopback, cache: ShardCache, pool: Path) -> None:
    """A real disk with room for four shards under a limit of a gigabyte: the local rows; with room for none: the user's error."""
    disk, address = mount_disk("900k"), server.serve(pool / "train", "train")
    shards = Shards.open(address, cache=ShardCache(disk / "cache", 10**9, cache.patience))
    assert rows(shards) == rows(Shards.open(pool / "train"))
    shards.expect([])
    not_whole(disk / "cache")
    for path in (disk / "cache").iterdir():
        if len(path.name) == 64:
            path.unlink()
    (disk / "other").write_bytes(bytes(760_000))
    with pytest.raises(UserError, match=r"the disk is full: .*shard-00000\d\.tar needs .*data\.cache_bytes"):
        rows(shards)
    shards.expect([])
    assert not_whole(disk / "cache") == []
    assert shards.cache is not None
    shards.cache._held_limit.release()  # the idle thread that fetches ahead keeps the cache for a minute, and so the disk in use


READER = """
import sys
from bamboo.datasets.remote.cache import Remote, ShardCache
from bamboo.datasets.remote.fetching import fetches_to
from pathlib import Path
cache = ShardCache(Path(sys.argv[1]), int(sys.argv[2]))
with fetches_to(lambda state: print(state.name, flush=True)):
    for line in sys.argv[3:]:
        url, sha256, size = line.split()
        cache.open(Remote(url, sha256, int(size)))
"""


def reader(cache: ShardCache, server: Loopback, names: list[str], limit_bytes: int = 10**9) -> "subprocess.Popen[str]":
    """Starts a process that opens files of the server through the cache, and says what it does."""
    wanted = [f"{server.url(name)} {hashlib.sha256(server.files[name]).hexdigest()} {len(server.files[name])}" for name in names]
    return subprocess.Popen([sys.executable, "-c", READER, str(cache.folder), str(limit_bytes), *wanted], stdout=subprocess.PIPE, text=True)


def said(process: "subprocess.Popen[str]") -> str:
    """Returns the next line that a reader says."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def part_size(cache: ShardCache) -> int:
    """Returns the bytes of unfinished files."""
    return sum(path.stat().st_size for path in cache.folder.glob("*.part")) if cache.folder.exists() else 0


def test_killed_while_caching(server: Loopback, cache: ShardCache) -> None:
    """SIGKILL at a random byte: no lock and no shared memory stays, and the next process goes on from there to the right bytes."""
    body = server.files["a.tar"] = os.urandom(600_000)
    server.script = [slowly(10_000, 0.01)]
    victim = reader(cache, server, ["a.tar"])
    some = random.randint(20_000, 400_000)
    wait_until(lambda: part_size(cache) >= some)
    assert "/dev/shm" not in Path(f"/proc/{victim.pid}/maps").read_text()
    victim.kill()
    victim.wait()
    left = part_size(cache)
    path = cache.folder / hashlib.sha256(body).hexdigest()
    assert not path.exists()
    assert not is_locked(path.with_name(f"{path.name}.lock"))
    assert reader(cache, server, ["a.tar"]).wait() == 0
    assert server.asked_for("a.tar") == ["", f"bytes={left}-"]
    assert path.read_bytes() == body
    assert not_whole(cache.folder) == []


def test_whoever_waits_takes_over_from_the_dead(server: Loopback, cache: ShardCache) -> None:
    """A holder that is stopped, then killed: the waiting process says that it waits, goes on waiting, and then goes on itself."""
    body = server.files["a.tar"] = os.urandom(600_000)
    server.script = [slowly(10_000, 0.02)]
    holder = reader(cache, server, ["a.tar"])
    wait_until(lambda: part_size(cache) >= 50_000)
    holder.send_signal(signal.SIGSTOP)
    waiting = reader(cache, server, ["a.tar"])
    assert said(waiting) == "WAIT"
    time.sleep(0.3)
    assert waiting.poll() is None
    holder.kill()
    holder.wait()
    assert waiting.wait(10) == 0
    assert len(server.asked_for("a.tar")) == 2
    assert (cache.folder / hashlib.sha256(body).hexdigest()).read_bytes() == body
    assert not_whole(cache.folder) == []


def test_two_jobs_share_a_cache(server: Loopback, cache: ShardCache) -> None:
    """Three processes that want six files in different orders: each file is asked for once."""
    names = [f"{number}.tar" for number in range(6)]
    server.files = {name: os.urandom(100_000) for name in names}
    server.script = [slowly(10_000, 0.01) for _ in names]
    jobs = [reader(cache, server, names[turn:] + names[:turn]) for turn in (0, 0, 3)]
    assert [job.wait() for job in jobs] == [0, 0, 0]
    assert sorted(path for path, _, _ in server.requests) == [f"/{name}" for name in names]
    for name, body in server.files.items():
        assert (cache.folder / hashlib.sha256(body).hexdigest()).read_bytes() == body, name
    assert not_whole(cache.folder) == []


def test_the_bound_holds_between_jobs(server: Loopback, cache: ShardCache) -> None:
    """Three processes that read eight files three times over in other orders, with room for three: never more than that on disk."""
    names = [f"{number}.tar" for number in range(8)]
    server.files = {name: os.urandom(100_000) for name in names}
    server.lasting = {name: slowly(20_000, 0.002) for name in names}
    orders = [random.Random(seed).choices(names, k=24) for seed in range(3)]
    jobs = [reader(cache, server, order, limit_bytes=350_000) for order in orders]
    wait_until((cache.folder / "lock").exists)
    most = 0
    while any(job.poll() is None for job in jobs):
        sizes: dict[str, int] = {}
        with locked(cache.folder / "lock"):  # nothing is removed meanwhile, and a file that is being renamed counts once
            for path in [path for path in cache.folder.iterdir() if path.suffix in ("", ".part") and path.name != "lock"]:
                with contextlib.suppress(FileNotFoundError):
                    sizes[path.stem] = max(sizes.get(path.stem, 0), path.stat().st_size)
        most = max(most, sum(sizes.values()))
        time.sleep(0.002)
    assert [job.returncode for job in jobs] == [0, 0, 0]
    assert 200_000 < most <= 350_000
    assert not_whole(cache.folder) == []
