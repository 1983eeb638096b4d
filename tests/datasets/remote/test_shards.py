"""A shard folder that lies elsewhere, against the same folder here."""

import os
import pickle
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bamboo.cli.errors import DataError, UserError
from bamboo.datasets.remote.cache import ShardCache
from bamboo.datasets.remote.open_files import OpenFile, OpenFiles
from bamboo.datasets.shards import Shards
from bamboo.datasets.stores import CutShortError
from tests.loopback import Loopback, cut, slowly, status
from tests.object_store import ObjectStore, slow_down

SIGNED = "?X-Amz-Credential=AKIDEXAMPLE&X-Amz-Signature=5ec2e7"


@pytest.fixture
def here(pool: Path) -> Shards:
    """101 samples in six shards on this disk."""
    return Shards.open(pool / "train")


def assert_equal(elsewhere: Shards, here: Shards) -> None:
    """Checks all that a store can do, sample by sample."""
    assert len(elsewhere) == len(here)
    assert (elsewhere.class_names, elsewhere.data_hash) == (here.class_names, here.data_hash)
    assert np.array_equal(elsewhere.labels, here.labels)
    for sample in random.Random(0).sample(range(len(here)), 40):
        assert elsewhere.read(sample) == here.read(sample)
        assert elsewhere.name(sample) == here.name(sample)
        assert elsewhere.shard_of(sample) == here.shard_of(sample)
    assert bool((elsewhere.load(5) == here.load(5)).all())


def test_over_http_with_a_signature(server: Loopback, cache: ShardCache, pool: Path, here: Shards) -> None:
    """A pre-signed folder read at random with room for three shards: equal to the folder here; every request is signed."""
    elsewhere = Shards.open(server.serve(pool / "train", "train") + SIGNED, cache=cache)
    assert_equal(elsewhere, here)
    assert all(path.endswith(SIGNED) for path, _, _ in server.requests)
    assert elsewhere.folder == server.url("train") + "?…"


def test_over_s3(store: ObjectStore, cache: ShardCache, pool: Path, here: Shards, waits: list[float]) -> None:
    """A bucket that begins with complaints: equal to the folder here."""
    address = store.put(pool / "train", "train")
    store.script = [slow_down, status(500)]
    elsewhere = Shards.open(address, cache=cache)
    assert_equal(elsewhere, here)
    assert len(waits) == 2
    assert elsewhere.folder == address


def test_a_file_address_is_a_local_folder(pool: Path, here: Shards) -> None:
    """file:// without any cache."""
    opened = Shards.open(f"file://{pool}/train")
    assert_equal(opened, here)
    assert opened.cache is None


def test_the_manifest_is_fetched_afresh_and_the_index_once(server: Loopback, cache: ShardCache, pool: Path) -> None:
    """Opened twice, with a busy server in between: two manifests, one index; a copy in another process asks for neither."""
    address = server.serve(pool / "train", "train")
    first = Shards.open(address, cache=cache)
    server.script = [status(503), cut(100)]
    Shards.open(address, cache=cache)
    assert [code for path, _, code in server.requests if path.endswith("dataset.json")] == [200, 503, 200, 200]
    assert len(server.asked_for("index.arrow")) == 1
    server.requests.clear()
    copy = pickle.loads(pickle.dumps(first))
    assert copy.read(3) == first.read(3)
    assert {path for path, _, _ in server.requests} == {f"/train/{first.shard_of(3)[1]}"}


def test_what_does_not_belong_together_is_refused(server: Loopback, cache: ShardCache, pool: Path) -> None:
    """Another index, a damaged manifest, none at all: the file and the reason."""
    address = server.serve(pool / "train", "train")
    server.files["train/index.arrow"] = (pool / "val/index.arrow").read_bytes()
    with pytest.raises(DataError, match=r"train/index\.arrow: sha256 is"):
        Shards.open(address, cache=cache)
    server.files["train/dataset.json"] = server.files["train/dataset.json"][:-100]
    with pytest.raises(DataError, match=r"train/dataset\.json: damaged"):
        Shards.open(address, cache=cache)
    with pytest.raises(DataError, match=r"none/dataset\.json: HTTP 404"):
        Shards.open(server.url("none"), cache=cache)


def test_credentials_are_refused_before_any_request(cache: ShardCache) -> None:
    """Keys in the address: the remedy, and not the key."""
    with pytest.raises(UserError, match="AWS_ACCESS_KEY_ID") as caught:
        Shards.open("s3://AKID:se/cret@images/train", cache=cache)
    assert "cret" not in str(caught.value)


def test_a_cache_too_small_is_said_when_opening(server: Loopback, cache: ShardCache, pool: Path) -> None:
    """Less than one shard, and less than a window: the setting, its value, and what it must be."""
    address = server.serve(pool / "train", "train")
    with pytest.raises(UserError, match=r"data\.cache_bytes=1,000: .*data\.cache_bytes>=204800"):
        Shards.open(address, cache=ShardCache(cache.folder, 1000, cache.patience))
    shards = Shards.open(address, cache=cache)
    shards.check_cache(3, "lower data.window")
    with pytest.raises(UserError, match=r"the 4 largest shards of .*lower data\.window\): 819,200 bytes; use data\.cache_bytes>=819200"):
        shards.check_cache(4, "lower data.window")


def wait_until(true: Callable[[], bool]) -> None:
    """Waits up to five seconds."""
    deadline = time.monotonic() + 5
    while not true():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)


def test_what_is_expected_is_there_before_it_is_read(server: Loopback, cache: ShardCache, pool: Path, here: Shards) -> None:
    """Two shards expected: fetched without a read, in that order, once; reading them asks for nothing."""
    shards = Shards.open(server.serve(pool / "train", "train"), cache=cache)
    server.requests.clear()
    shards.expect([4, 1])
    wait_until(lambda: len(server.requests) == 2)
    wait_until(lambda: len([path for path in cache.folder.iterdir() if len(path.name) == 64]) == 2)
    assert shards.read(85) == here.read(85)
    assert shards.read(25) == here.read(25)
    assert [path for path, _, _ in server.requests] == ["/train/shard-000004.tar", "/train/shard-000001.tar"]


def test_what_goes_wrong_ahead_is_said_by_the_read(server: Loopback, cache: ShardCache, pool: Path, here: Shards) -> None:
    """A shard that is gone from the server: expecting it is quiet, others are read, and its own read names it."""
    shards = Shards.open(server.serve(pool / "train", "train"), cache=cache)
    server.lasting = {"train/shard-000002.tar": status(404)}
    shards.expect([2, 0])
    assert shards.read(0) == here.read(0)
    with pytest.raises(DataError, match=r"shard-000002\.tar: HTTP 404"):
        shards.read(45)
    assert shards.name(45) == "shard-000002.tar:sample 45"


def test_a_fork_during_a_fetch(server: Loopback, cache: ShardCache, pool: Path, here: Shards) -> None:
    """A child forked while threads of the parent fetch, open and expect: it reads all samples, fetches ahead, and so does the parent."""
    shards = Shards.open(server.serve(pool / "train", "train"), cache=cache)
    server.script = [slowly(20_000, 0.03)]
    shards.expect([0, 1])
    wait_until(lambda: len(server.asked_for("shard-000000.tar")) == 1)
    ahead = cache.folder / here.manifest.shards[5].sha256
    with shards._files._lock, shards._prefetcher._changed:  # type: ignore[union-attr]  # a remote folder has one
        child = os.fork()
    if child == 0:
        right = all(shards.read(sample) == here.read(sample) for sample in range(100))
        ahead.unlink(missing_ok=True)
        shards.expect([5])
        wait_until(ahead.exists)
        os._exit(0 if right else 1)
    assert all(shards.read(sample) == here.read(sample) for sample in range(0, 100, 5))
    deadline = time.monotonic() + 20
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    if ended[0] == 0:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ended == (child, 0)


def open_shards(folder: Path) -> int:
    """Returns how many files of a folder this process has open."""
    opened = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return sum(path.startswith(f"{folder}/shard-") for path in opened)


def test_descriptors_are_closed_when_others_are_expected(pool: Path, here: Shards) -> None:
    """All six shards read: six descriptors; two expected: those two; a read of another one works all the same."""
    for sample in range(0, 101, 20):
        here.read(sample)
    assert open_shards(pool / "train") == 6
    here.expect([5, 2])
    assert open_shards(pool / "train") == 2
    here.read(0)
    assert open_shards(pool / "train") == 3


def test_descriptors_are_bounded_and_none_is_closed_under_a_reader(tmp_path: Path) -> None:
    """Four threads over twenty files with three descriptors: each reads its file's own bytes, and three stay open."""
    for number in range(20):
        (tmp_path / f"shard-{number}").write_bytes(bytes([number]) * 1000)
    files = OpenFiles(lambda number: OpenFile(tmp_path / f"shard-{number}"), most=3)
    wrong = []

    def read(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(500):
            number = draw.randrange(20)
            file = files.get(number)
            if os.pread(file.descriptor, 1000, 0) != bytes([number]) * 1000:
                wrong.append(number)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(files) == open_shards(tmp_path) == 3


def test_threads_do_not_share_a_buffer(here: Shards) -> None:
    """Four threads that load at random: each image equals the one loaded alone."""
    expected = [here.read(sample) for sample in range(101)]
    wrong = []

    def read(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(300):
            sample = draw.randrange(101)
            data = here.encoded(sample)
            time.sleep(0)  # lets another thread read
            if bytes(data) != expected[sample]:
                wrong.append(sample)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_shard_that_ends_or_goes_after_opening_is_named(packed: Path) -> None:
    """Truncated: an error of that sample; removed: one of the shard; both with the path."""
    shards = Shards.open(packed)
    os.truncate(packed / "shard-000000.tar", 2000)
    with pytest.raises(CutShortError, match=r"shard-000000\.tar: truncated: sample 6"):
        shards.read(6)
    (packed / "shard-000001.tar").unlink()
    with pytest.raises(DataError, match=r"shard-000001\.tar: cannot be opened: No such file"):
        shards.read(7)
