"""A file server on the loopback, an S3 server behind a proxy, and patience that tests do not sit out."""

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from bamboo.datasets.remote.cache import Remote, ShardCache
from bamboo.datasets.remote.transport import Patience
from tests.datasets.remote.content import SIZE
from tests.loopback import Loopback, loopback
from tests.object_store import ObjectStore, object_store


@pytest.fixture
def server() -> Iterator[Loopback]:
    """An HTTP server without files."""
    with loopback() as running:
        yield running


@pytest.fixture(scope="module")
def running_store() -> Iterator[ObjectStore]:
    """moto's S3 server, started once for a test file."""
    with object_store() as running:
        yield running


@pytest.fixture
def store(running_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """The S3 server, behaving, and the environment that leads clients to it."""
    running_store.script.clear()
    running_store.lasting.clear()
    running_store.requests.clear()
    for name, value in running_store.environment.items():
        monkeypatch.setenv(name, value)
    return running_store


@pytest.fixture
def waits() -> list[float]:
    """The waits between attempts, which the tests do not sit out."""
    return []


@pytest.fixture
def patience(waits: list[float]) -> Patience:
    """Four attempts, 0.5 s for a silent server."""
    return Patience(stall_s=0.5, attempts=4, sleep=waits.append)


@pytest.fixture
def cache(tmp_path: Path, patience: Patience) -> ShardCache:
    """An empty cache of 650,000 bytes: three of the test pool's shards."""
    return ShardCache(tmp_path / "cache", 650_000, patience)


@pytest.fixture
def files(server: Loopback) -> list[Remote]:
    """Eight files of SIZE random bytes on the server, `0.tar` …; three fit into the cache."""
    made = []
    for number in range(8):
        body = random.Random(number).randbytes(SIZE)
        server.files[f"{number}.tar"] = body
        made.append(Remote(server.url(f"{number}.tar"), hashlib.sha256(body).hexdigest(), SIZE))
    return made
