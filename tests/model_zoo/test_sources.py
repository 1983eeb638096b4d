"""Fetching a registry's file: caches, mirrors, sources in their order, offline, and what is remembered."""

import dataclasses
import hashlib
import os
import re
import time
from pathlib import Path

import pytest

from bamboo.cli.errors import DataError, UserError
from bamboo.model_zoo import receipts
from bamboo.model_zoo.sources import Access, access_from_environment, fetch, locate
from tests.loopback import Loopback, longer, status, web_page
from tests.model_zoo.released import entry, legacy_weights, weights

FILE = weights()
OTHER = weights(1)
SHA256 = hashlib.sha256(FILE).hexdigest()


pytestmark = pytest.mark.usefixtures("no_hub")


def test_fetched_once_and_then_found(server: Loopback, tmp_path: Path, access: Access) -> None:
    """The bytes served, in the documented place; the second call makes no request and hashes nothing."""
    model = entry(tmp_path, {"url": server.url("small.safetensors"), "sha256": SHA256, "num_bytes": len(FILE)})
    fetched = fetch(model, access)
    assert fetched.path == tmp_path / "cache/zoo/small/small.safetensors"
    assert fetched.path.read_bytes() == FILE
    assert fetched.sha256 == SHA256
    again = fetch(model, dataclasses.replace(access, offline=True))
    assert (again.path, again.sha256) == (fetched.path, SHA256)
    assert len(server.requests) == 1


def test_a_checked_file_is_not_hashed_again(tmp_path: Path, server: Loopback, access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of sha256_file: none for a file as it was checked, one for a file that was touched, and an altered one is refused."""
    model = entry(tmp_path, {"url": server.url("small.safetensors")})
    path = fetch(model, access).path
    hashed: list[Path] = []
    real = receipts.sha256_file
    monkeypatch.setattr(receipts, "sha256_file", lambda file: hashed.append(file) or real(file))
    assert locate(model, access) is not None
    assert hashed == []
    os.utime(path)
    assert locate(model, access) is not None
    assert hashed == [path]
    path.write_bytes(OTHER)
    with pytest.raises(DataError, match=r"as the first copy had \(.*remove .*small\.safetensors\.receipt\.json"):
        locate(model, access)


def test_the_first_download_is_trusted_and_later_ones_must_be_equal(server: Loopback, tmp_path: Path, access: Access) -> None:
    """A file without a hash in the registry, removed from the cache and changed on the server: refused, the reason names the receipt."""
    model = entry(tmp_path, {"url": server.url("small.safetensors")})
    path = fetch(model, access).path
    path.unlink()
    server.files["small.safetensors"] = OTHER
    receipt = path.with_name("small.safetensors.receipt.json")
    date = time.strftime("%Y-%m-%d")
    said = rf"it should be {SHA256} as the first copy had \({date}, {re.escape(server.url('small.safetensors'))}\)"
    with pytest.raises(DataError, match=rf"{said}; to accept the new file remove {re.escape(str(receipt))}"):
        fetch(model, access)
    assert not path.exists()
    receipt.unlink()
    assert fetch(model, access).path.read_bytes() == OTHER


def test_the_registry_has_the_say_over_the_first_download(server: Loopback, tmp_path: Path, access: Access) -> None:
    """A file fetched without a hash, which the registry then pins, by all digits or the first: to this file, taken; to another, refused."""
    source: dict[str, object] = {"url": server.url("small.safetensors")}
    fetch(entry(tmp_path, source), access)
    other = hashlib.sha256(OTHER).hexdigest()
    for pin in (SHA256, SHA256[:8]):
        assert fetch(entry(tmp_path, {**source, "sha256": pin}), access).sha256 == SHA256
    for pin in (other, other[:8]):
        with pytest.raises(DataError, match=f"sha256 is {SHA256}, not {pin} as the registry says"):
            fetch(entry(tmp_path, {**source, "sha256": pin}), access)
    place = access.place(entry(tmp_path, source), "small.safetensors")
    place.write_bytes(OTHER)
    assert fetch(entry(tmp_path, {**source, "sha256": other[:8]}), access).sha256 == other


def test_sources_are_tried_in_order_and_all_failures_are_told(server: Loopback, tmp_path: Path, access: Access) -> None:
    """A 404, a web page, then the right file: fetched from the third; with only bad ones, the error lists each reason."""
    server.files["page.safetensors"] = FILE
    bad: list[dict[str, object]] = [{"url": server.url("missing.safetensors")}, {"url": server.url("page.safetensors")}]
    server.script = [lambda answer: answer.send(), web_page("text/html")]
    assert fetch(entry(tmp_path, *bad, {"url": server.url("small.safetensors")}), access).came_from == server.url("small.safetensors")
    server.script = [lambda answer: answer.send(), web_page("text/html")]
    with pytest.raises(DataError, match=r"(?s)no source gives it.*missing\.safetensors: HTTP 404.*page\.safetensors: .*web page"):
        fetch(entry(tmp_path, *bad), dataclasses.replace(access, cache=tmp_path / "empty"))


@pytest.mark.parametrize("content", [FILE[:-100], b"PK\x03\x04 not a zip", b"hello", b"", b"<html>no</html>"])
def test_an_unpinned_file_must_at_least_be_a_checkpoint(server: Loopback, tmp_path: Path, access: Access, content: bytes) -> None:
    """A truncated safetensors file, a broken archive, text, nothing, a page: refused, and the cache holds no such file."""
    server.files["small.safetensors"] = content
    with pytest.raises(DataError, match="small"):
        fetch(entry(tmp_path, {"url": server.url("small.safetensors")}), access)
    assert [path.name for path in (tmp_path / "cache/zoo/small").iterdir()] == ["fetch.lock"]


def test_a_file_said_to_be_shorter_than_it_is(server: Loopback, tmp_path: Path, access: Access) -> None:
    """A Content-Length that is 1,000 bytes too small, and no hash: seen from the file's own header."""
    server.script = [longer(-1000)]
    with pytest.raises(DataError, match="its header says"):
        fetch(entry(tmp_path, {"url": server.url("small.safetensors")}), access)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("lacking", [1, 1_000, 100_000])
def test_a_cut_pth_is_not_believed(server: Loopback, tmp_path: Path, access: Access, zipped: bool, lacking: int) -> None:
    """Both of torch's own forms, announced too short: refused, no receipt; whole, the same address gives the file."""
    server.files["small.pth"] = legacy_weights(zipped=zipped)
    model = entry(tmp_path, {"url": server.url("small.pth")})
    server.script = [longer(-lacking)]
    with pytest.raises(DataError, match="truncated or damaged"):
        fetch(model, access)
    assert [path.name for path in (tmp_path / "cache/zoo/small").iterdir()] == ["fetch.lock"]
    assert fetch(model, access).path.read_bytes() == server.files["small.pth"]


def test_offline_says_which_file_goes_where(tmp_path: Path, server: Loopback, access: Access) -> None:
    """No request is made; a file put by hand at the named place is then taken, one with another hash is not."""
    model = entry(tmp_path, {"url": server.url("small.safetensors"), "sha256": SHA256})
    offline = dataclasses.replace(access, offline=True, mirror=server.address)
    with pytest.raises(UserError, match=r"cache/zoo/small/small\.safetensors"):
        fetch(model, offline)
    assert server.requests == []
    place = offline.place(model, "small.safetensors")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(OTHER)
    with pytest.raises(DataError, match="as the registry says"):
        fetch(model, offline)
    place.write_bytes(FILE)
    assert fetch(model, offline).path == place


@pytest.mark.parametrize("kind", ["address", "folder"])
def test_a_mirror_comes_first(tmp_path: Path, server: Loopback, access: Access, kind: str) -> None:
    """MIRROR/ID/FILE is taken, not the source; a mirror without it falls back on the source; a wrong file there is not taken."""
    held = tmp_path / "mirror/small/small.safetensors"
    held.parent.mkdir(parents=True)
    held.write_bytes(FILE)
    server.files["mirror/small/small.safetensors"] = FILE
    mirror = f"{server.address}/mirror" if kind == "address" else str(tmp_path / "mirror")
    model = entry(tmp_path, {"url": server.url("small.safetensors"), "sha256": SHA256})
    fetched = fetch(model, dataclasses.replace(access, mirror=mirror))
    assert fetched.came_from == f"mirror {mirror}"
    assert fetched.path.read_bytes() == FILE
    held.write_bytes(OTHER)
    server.files["mirror/small/small.safetensors"] = OTHER
    elsewhere = dataclasses.replace(access, mirror=mirror, cache=tmp_path / "second")
    assert fetch(model, elsewhere).came_from == server.url("small.safetensors")
    held.unlink()
    del server.files["mirror/small/small.safetensors"]
    elsewhere = dataclasses.replace(access, mirror=mirror, cache=tmp_path / "third")
    assert fetch(model, elsewhere).came_from == server.url("small.safetensors")


def test_a_mirror_that_is_nothing_is_named(tmp_path: Path, access: Access) -> None:
    """A mirror that is neither a folder nor an address."""
    with pytest.raises(DataError, match="mirror=/nowhere: neither a folder"):
        fetch(entry(tmp_path, {"drive": "x", "file": "a.pth"}), dataclasses.replace(access, mirror="/nowhere"))


def test_shared_caches_are_searched_first_and_only_read(tmp_path: Path, server: Loopback, access: Access) -> None:
    """A file in a shared folder is used where it is; the folder is as it was."""
    shared = tmp_path / "shared/zoo/small/small.safetensors"
    shared.parent.mkdir(parents=True)
    shared.write_bytes(FILE)
    model = entry(tmp_path, {"url": server.url("small.safetensors")})
    fetched = fetch(model, dataclasses.replace(access, shared=(tmp_path / "shared",)))
    assert fetched.path == shared
    assert [path.name for path in shared.parent.iterdir()] == ["small.safetensors"]
    assert server.requests == []


def test_a_damaged_receipt_is_named(server: Loopback, tmp_path: Path, access: Access) -> None:
    """A receipt that cannot be read is an error, since it holds a hash."""
    model = entry(tmp_path, {"url": server.url("small.safetensors")})
    receipt = fetch(model, access).path.with_name("small.safetensors.receipt.json")
    receipt.write_text("{")
    with pytest.raises(DataError, match=r"receipt\.json: damaged"):
        fetch(model, access)


def test_settings_win_over_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Access with and without settings, under an environment that names everything."""
    for name in ("BAMBOO_CACHE", "BAMBOO_MIRROR", "BAMBOO_OFFLINE", "HF_HUB_OFFLINE", "BAMBOO_SHARED_CACHES", "BAMBOO_REGISTRY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert access_from_environment().cache == tmp_path / "xdg/bamboo"
    monkeypatch.setenv("BAMBOO_CACHE", str(tmp_path / "named"))
    monkeypatch.setenv("BAMBOO_SHARED_CACHES", f"/one{os.pathsep}/two")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    named = access_from_environment()
    assert (named.cache, named.shared, named.offline) == (tmp_path / "named", (Path("/one"), Path("/two")), True)
    assert access_from_environment(cache=tmp_path / "set", shared=()).cache == tmp_path / "set"
    assert access_from_environment(cache=tmp_path / "set", shared=()).shared == ()


def test_busy_sources_are_left_for_the_next(server: Loopback, tmp_path: Path, access: Access) -> None:
    """A source that stays at 503 is given up after two attempts, and the next one gives the file."""
    server.files["second.safetensors"] = FILE
    server.script = [status(503), status(503)]
    model = entry(tmp_path, {"url": server.url("small.safetensors")}, {"url": server.url("second.safetensors")})
    assert fetch(model, access).path.name == "second.safetensors"
    assert [code for _, _, code in server.requests] == [503, 503, 200]
