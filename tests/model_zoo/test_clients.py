"""Files that the clients of the Hub and of Google Drive fetch, and copies that were found: each looked at before it is believed."""

import hashlib
import inspect
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from bamboo.cli.errors import DataError
from bamboo.model_zoo.sources import Access, fetch
from tests.loopback import Loopback
from tests.model_zoo.released import entry, legacy_weights, registry, weights

FILE = weights()
OTHER = weights(1)
SHA256 = hashlib.sha256(FILE).hexdigest()
PAGE = b"<html><body>login</body></html>"


pytestmark = pytest.mark.usefixtures("no_hub")


def test_drive_needs_its_extra(tmp_path: Path, access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gdown the failure names the extra."""
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(DataError, match=r"bamboo-vision\[drive\]"):
        fetch(entry(tmp_path, {"drive": "some-id", "file": "small.pth"}), access)


@pytest.mark.parametrize(("given", "accepted"), [(FILE, True), (OTHER, False), (b"<html>quota</html>", False)])
def test_drive_files_are_checked(tmp_path: Path, access: Access, monkeypatch: pytest.MonkeyPatch, given: bytes, accepted: bool) -> None:
    """A stand-in for gdown that writes what it is told: the right file is taken, another one or a quota page leaves nothing."""

    def stand_in(*, id: str, output: str, **options: object) -> str:  # noqa: A002  gdown's own name
        assert (id, options["use_cookies"]) == ("some-id", False)
        Path(output).write_bytes(given)
        return output

    monkeypatch.setitem(sys.modules, "gdown", types.SimpleNamespace(download=stand_in))
    model = entry(tmp_path, {"drive": "some-id", "file": "small.pth", "sha256": SHA256})
    if accepted:
        assert fetch(model, access).path.read_bytes() == FILE
    else:
        with pytest.raises(DataError, match="Google Drive some-id"):
            fetch(model, access)
    kept = {path.name for path in (tmp_path / "cache/zoo/small").iterdir()}
    assert kept == ({"fetch.lock", "small.pth", "small.pth.receipt.json"} if accepted else {"fetch.lock"})


FETCH = [sys.executable, "-m", "bamboo.cli", "zoo", "fetch", "small"]


def hub_environment(folder: Path, server: Loopback, file: Path) -> dict[str, str]:
    """Returns the environment of a command that takes the loopback for the Hub."""
    return {
        **os.environ,
        "HF_ENDPOINT": server.address,
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "BAMBOO_CACHE": str(folder / "cache"),
        "BAMBOO_REGISTRY": str(file),
    }


def test_the_hub_is_asked_through_its_own_client(tmp_path: Path, server: Loopback) -> None:
    """HF_ENDPOINT at the loopback, which speaks as much of the Hub as one file takes: the file lands in the Hub's cache, by its hash."""
    server.files["someone/small/resolve/main/model.safetensors"] = FILE
    file = registry(tmp_path, {"hub": "someone/small", "sha256": SHA256})
    environment = hub_environment(tmp_path, server, file)
    done = subprocess.run(FETCH, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert SHA256 in done.stdout
    (kept,) = (tmp_path / "hf/hub").rglob("snapshots/*/model.safetensors")
    assert kept.read_bytes() == FILE
    offline = subprocess.run(FETCH, env={**environment, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False)
    assert offline.returncode == 0, offline.stderr
    assert str(kept) in offline.stdout


def without_patience(*, id: object, output: object, quiet: object, use_cookies: object, resume: object) -> None:  # noqa: A002  gdown's name
    """Has what we use of the signature of an older gdown's `download`."""


def with_patience(
    *,
    id: object,  # noqa: A002  gdown's own name
    output: object,
    quiet: object,
    use_cookies: object,
    resume: object,
    timeout: object = None,
    retries: object = 0,
) -> None:
    """Has what we use of the present one's."""


def drive_call(download: object, access: Access, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Returns the arguments with which we call a gdown whose `download` has that one's signature."""
    given: dict[str, object] = {}

    def take(**options: object) -> None:
        given.update(options)
        Path(str(options["output"])).write_bytes(FILE)

    signature = inspect.signature(download)  # type: ignore[arg-type]  # gdown has no stubs, and so no type
    take.__signature__ = signature  # type: ignore[attr-defined]  # inspect looks for it
    monkeypatch.setitem(sys.modules, "gdown", types.SimpleNamespace(download=take))
    fetch(entry(folder, {"drive": "some-id", "file": "small.pth"}), access)
    signature.bind(**given)
    return given


def test_drive_is_not_waited_for_for_ever(tmp_path: Path, access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for a gdown with timeout and retries gets ours; one without them is called without."""
    given = drive_call(with_patience, access, tmp_path, monkeypatch)
    assert (given["timeout"], given["retries"]) == (0.3, 1)
    (tmp_path / "cache/zoo/small/small.pth").unlink()
    assert "timeout" not in drive_call(without_patience, access, tmp_path, monkeypatch)


def test_our_call_is_one_that_gdown_takes(tmp_path: Path, access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    """The arguments of our call bound to the signature of the installed gdown; where that has a timeout, we give one."""
    installed = pytest.importorskip("gdown").download
    given = drive_call(installed, access, tmp_path, monkeypatch)
    assert {"timeout", "retries"} & set(inspect.signature(installed).parameters) <= given.keys()


def test_a_bad_file_of_the_hub_is_refused_each_time(tmp_path: Path, server: Loopback) -> None:
    """A web page from the Hub, which its client keeps: refused by the first fetch and by the second, and no receipt is written."""
    server.files["someone/small/resolve/main/model.safetensors"] = PAGE
    environment = hub_environment(tmp_path, server, registry(tmp_path, {"hub": "someone/small"}))
    for _ in range(2):
        done = subprocess.run(FETCH, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert "is a web page, not a checkpoint; remove the file" in done.stderr
    assert not list((tmp_path / "cache").rglob("*.receipt.json"))


@pytest.mark.parametrize("content", [PAGE, b"hello", FILE[:-100], legacy_weights()[:-1000]])
def test_a_bad_copy_is_not_believed(tmp_path: Path, server: Loopback, access: Access, content: bytes) -> None:
    """A page, text and cut checkpoints put there by hand: refused, and once removed the file is fetched as if they had never been."""
    model = entry(tmp_path, {"url": server.url("small.safetensors")})
    place = access.place(model, "small.safetensors")
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    with pytest.raises(DataError, match="remove the file and fetch again"):
        fetch(model, access)
    assert [path.name for path in place.parent.iterdir()] == [place.name]
    place.unlink()
    assert fetch(model, access).sha256 == SHA256


def test_another_checkpoint_put_there_is_named_by_the_later_error(tmp_path: Path, server: Loopback, access: Access) -> None:
    """A whole checkpoint, but another: believed, since nothing is pinned; the genuine download then names receipt, copy and remedy."""
    model = entry(tmp_path, {"url": server.url("small.safetensors")})
    place = access.place(model, "small.safetensors")
    place.parent.mkdir(parents=True)
    place.write_bytes(OTHER)
    fetch(model, access)
    place.unlink()
    with pytest.raises(DataError, match=r"as the first copy had \(.*a copy found at .*\); to accept the new file remove .*receipt\.json"):
        fetch(model, access)
    place.with_name(f"{place.name}.receipt.json").unlink()
    assert fetch(model, access).sha256 == SHA256
