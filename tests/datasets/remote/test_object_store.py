"""Files from an S3 server (moto) that is slow, broken, cut, or says no."""

import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bamboo.cli.errors import BambooError, DataError, UserError
from bamboo.datasets.remote import fsspec_transport
from bamboo.datasets.remote.download import download, fetch_bytes
from bamboo.datasets.remote.transport import Patience
from tests.loopback import Behaviour, cut, good, longer, stall, status
from tests.object_store import ObjectStore, slow_down

BODY = os.urandom(300_000)
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def address(store: ObjectStore, tmp_path: Path) -> str:
    """BODY in the bucket."""
    (tmp_path / "up").mkdir()
    (tmp_path / "up/file").write_bytes(BODY)
    return f"{store.put(tmp_path / 'up', 'test')}/file"


GOOD_ENDS: list[tuple[str, list[Behaviour], list[float]]] = [
    ("at once", [], []),
    ("slow down", [slow_down, good, slow_down], [2, 2]),
    ("errors", [status(500), good, status(503)], [1, 2]),
    ("cut", [good, cut(1000), good, cut(0)], [1, 2]),
    ("too long", [good, longer(500)], [1]),
    ("too short", [good, longer(-500)], []),
    ("stalled", [good, stall(100, 0.8)], [1]),
]


@pytest.mark.parametrize(("behaviours", "waited"), [each[1:] for each in GOOD_ENDS], ids=[each[0] for each in GOOD_ENDS])
def test_the_object_is_whole_in_the_end(
    address: str,
    store: ObjectStore,
    tmp_path: Path,
    patience: Patience,
    waits: list[float],
    behaviours: list[Behaviour],
    waited: list[float],
) -> None:
    """Bytes and hash against those uploaded, and the waits against Retry-After and the doubling, so that only our own retries count."""
    store.script = list(behaviours)
    assert download(address, tmp_path / "file", patience=patience, show=False) == SHA256
    assert (tmp_path / "file").read_bytes() == BODY
    assert waits[: len(waited)] == [pytest.approx(wait, rel=0.11) for wait in waited]


def test_an_object_goes_on_stretch_by_stretch(
    address: str, store: ObjectStore, tmp_path: Path, patience: Patience, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stretches of 100,000 bytes, the third cut and then refused: a later call asks for that one alone."""
    monkeypatch.setattr(fsspec_transport, "_STRETCH_BYTES", 100_000)
    store.script = [good, good, good, cut(10), *(status(500) for _ in range(3))]
    with pytest.raises(DataError, match=r"HTTP 500.*attempt 4 of 4\); 200,000 bytes are kept"):
        download(address, tmp_path / "file", patience=patience, show=False)
    store.requests.clear()
    assert download(address, tmp_path / "file", patience=patience, show=False) == SHA256
    assert [asked for _, asked, _ in store.requests] == ["", "bytes=200000-299999"]


def test_an_object_that_changed_is_not_spliced(
    address: str, store: ObjectStore, tmp_path: Path, patience: Patience, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another object of the same size after the first stretch: the result is all of the new one."""
    monkeypatch.setattr(fsspec_transport, "_STRETCH_BYTES", 100_000)
    store.script = [good, good, *(status(500) for _ in range(4))]
    with pytest.raises(DataError):
        download(address, tmp_path / "file", patience=patience, show=False)
    other = os.urandom(len(BODY))
    (tmp_path / "up/file").write_bytes(other)
    store.put(tmp_path / "up", "test")
    download(address, tmp_path / "file", patience=patience, show=False)
    assert (tmp_path / "file").read_bytes() == other


FAILURES: list[tuple[list[Behaviour], str]] = [
    ([status(404)], "FileNotFoundError"),
    ([status(403)], "PermissionError"),
    ([good, status(403)], "403|PermissionError"),
    ([slow_down] * 9, r"HTTP 503, .*attempt 4 of 4"),
    ([good, cut(10)] * 9, r"payload is not completed.*attempt 4 of 4"),
]


@pytest.mark.parametrize(("behaviours", "message"), FAILURES)
def test_what_cannot_be_had_fails_with_the_reason(
    address: str, store: ObjectStore, tmp_path: Path, patience: Patience, behaviours: list[Behaviour], message: str
) -> None:
    """Each failure names object and cause, holds no key, and leaves no file under the final name."""
    store.script = list(behaviours)
    with pytest.raises(DataError, match=message) as caught:
        download(address, tmp_path / "file", patience=patience, show=False)
    store.script.clear()
    assert address in str(caught.value)
    assert not [key for key in store.environment.values() if len(key) > 9 and "://" not in key and key in str(caught.value)]
    assert not (tmp_path / "file").exists()


def in_a_new_thread(address: str) -> BambooError:
    """Returns how a client that is made anew fails."""
    caught: list[BambooError] = []

    def ask() -> None:
        try:
            fetch_bytes(address, Patience(attempts=1))
        except BambooError as error:
            caught.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return caught[0]


def test_no_credentials_is_said_with_the_remedy(address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key in the environment: the user's error, at once, with what to set."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    error = in_a_new_thread(address)
    assert isinstance(error, UserError)
    assert "set AWS_ACCESS_KEY_ID" in str(error)


def test_a_client_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """gs:// without gcsfs, and a scheme that nobody knows."""
    monkeypatch.setattr(fsspec_transport.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'bamboo-vision[gs]'" in str(in_a_new_thread("gs://bucket/file"))
    assert "nor another scheme" in str(in_a_new_thread("nowhere://bucket/file"))


def test_other_schemes_go_through_fsspec(tmp_path: Path, patience: Patience) -> None:
    """fsspec's memory:// as a stand-in for any other scheme: the bytes written to it."""
    import fsspec

    fsspec.filesystem("memory").pipe("/folder/file", BODY)
    assert download("memory://folder/file", tmp_path / "file", patience=patience, show=False) == SHA256
    with pytest.raises(DataError, match="FileNotFoundError"):
        download("memory://folder/none", tmp_path / "none", patience=patience, show=False)


def test_nothing_is_imported_before_it_is_needed() -> None:
    """A new interpreter with the downloads: neither fsspec nor the clients are loaded."""
    code = "import sys, bamboo.datasets.remote.download; print({'fsspec', 's3fs', 'botocore', 'aiohttp'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
