"""Downloads through torchvision, whose classes are replaced by ones that write a fixture, or fail as the network does."""

import os
import signal
import ssl
import sys
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torchvision.datasets

from bamboo.cli.errors import DataError, UserError
from bamboo.cli.main import main
from bamboo.datasets.downstream import download as module
from bamboo.datasets.downstream.download import TORCHVISION, download
from bamboo.datasets.downstream.facts import SETS
from bamboo.datasets.downstream.sets import open_set
from tests.datasets.downstream import official
from tests.datasets.downstream.official import TINY

Write = Callable[[Path], object]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Official counts as the fixtures have them."""
    for name, described in TINY.items():
        monkeypatch.setitem(SETS, name, described)


@pytest.fixture
def fetches(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Write], list[str]]:
    """Replaces torchvision's class of a set by a function that writes; returns the list of its calls."""

    def replace(name: str, write: Write) -> list[str]:
        calls: list[str] = []

        def fetch(root: str, *, download: bool) -> None:
            assert download
            calls.append(root)
            (Path(root) / "archive.tar.gz").write_bytes(b"archive")
            write(Path(root))

        monkeypatch.setattr(torchvision.datasets, TORCHVISION[name], fetch)
        return calls

    return replace


WRITERS: dict[str, Write] = {
    "cifar10": lambda root: official.cifar(root, "cifar10"),
    "cifar100": lambda root: official.cifar(root, "cifar100"),
    **{name: getattr(official, name) for name in ("food", "pet", "flower", "dtd", "caltech", "aircraft")},
}


@pytest.mark.parametrize("name", sorted(TORCHVISION))
def test_a_download_is_checked_and_moved(tmp_path: Path, fetches: Callable[[str, Write], list[str]], name: str) -> None:
    """The fixture, fetched into a hidden folder in the root: opens from the root, nothing else is left; a second call fetches nothing."""
    calls = fetches(name, WRITERS[name])
    root = tmp_path / "data"
    place = download(name, root)
    assert [Path(call).parent for call in calls] == [root]
    assert [entry.name for entry in root.iterdir()] == [place.relative_to(root).parts[0]]
    assert len(open_set(name, root, "train")) == (TINY[name].counts or {})["train"]
    assert download(name, root) == place
    assert len(calls) == 1


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError("connection refused"),
        urllib.error.HTTPError("http://host/file", 500, "server error", None, None),  # type: ignore[arg-type]  # no headers are needed
        RuntimeError("File not found or corrupted."),
        TimeoutError("timed out"),
        ConnectionResetError("reset"),
        ssl.SSLError("bad record"),
        EOFError("ended early"),
    ],
)
def test_a_failing_network_is_explained(tmp_path: Path, fetches: Callable[[str, Write], list[str]], error: Exception) -> None:
    """What urllib and torchvision raise: UserError with the reason and what to do; nothing is left in the root."""

    def fail(root: Path) -> None:
        official.pet(root)
        raise error

    fetches("pet", fail)
    with pytest.raises(UserError, match=r"torchvision\.datasets\.OxfordIIITPet could not fetch it: .*bamboo sets check pet DIR"):
        download("pet", tmp_path)
    assert not list(tmp_path.iterdir())


def test_flowers_without_scipy(tmp_path: Path, fetches: Callable[[str, Write], list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """scipy not installed: the extra is named before anything is fetched or made."""
    calls = fetches("flower", official.flower)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(UserError, match=r"scipy is not installed: pip install 'bamboo-vision\[sets\]'"):
        download("flower", tmp_path / "data")
    assert not calls
    assert not list(tmp_path.iterdir())


def test_a_killed_download_is_cleared(tmp_path: Path, fetches: Callable[[str, Write], list[str]]) -> None:
    """A process killed while it fetches leaves one hidden folder of a fixed name; the next download clears it, and leaves the set alone."""

    def die(root: Path) -> None:
        official.pet(root)
        os.kill(os.getpid(), signal.SIGTERM)

    for _ in range(2):
        fetches("pet", die)
        child = os.fork()
        if not child:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            download("pet", tmp_path)
            os._exit(0)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM
        assert {entry.name for entry in tmp_path.iterdir()} == {".download-pet", ".download-pet.lock"}
    fetches("pet", official.pet)
    download("pet", tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["oxford-iiit-pet"]


def test_one_download_at_a_time(tmp_path: Path, fetches: Callable[[str, Write], list[str]]) -> None:
    """A second one of the same set to the same root is refused while the first runs, and what the first has so far stays."""
    said = []

    def write(root: Path) -> None:
        with pytest.raises(UserError, match="another process is downloading pet there; wait for it") as caught:
            download("pet", tmp_path)
        said.append(caught.value)
        assert (root / "archive.tar.gz").exists()
        official.pet(root)

    calls = fetches("pet", write)
    download("pet", tmp_path)
    assert (len(calls), len(said)) == (1, 1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["oxford-iiit-pet"]


def test_a_wrong_set_is_not_kept(tmp_path: Path, fetches: Callable[[str, Write], list[str]]) -> None:
    """An archive that lacks an image: DataError, and the root stays empty."""

    def write(root: Path) -> None:
        official.pet(root)
        (root / "oxford-iiit-pet" / "images" / "Bengal_2.jpg").unlink()

    fetches("pet", write)
    with pytest.raises(DataError, match=r"Bengal_2\.jpg"):
        download("pet", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_place_that_is_taken(tmp_path: Path, fetches: Callable[[str, Write], list[str]]) -> None:
    """A folder of that name with something else, and a set that is there but damaged: neither is touched."""
    calls = fetches("pet", official.pet)
    (tmp_path / "a" / "oxford-iiit-pet").mkdir(parents=True)
    with pytest.raises(UserError, match="is there, but is not the whole of pet; move it away"):
        download("pet", tmp_path / "a")
    assert [entry.name for entry in (tmp_path / "a").iterdir()] == ["oxford-iiit-pet"]
    official.pet(tmp_path / "b")
    (tmp_path / "b" / "oxford-iiit-pet" / "images" / "Bengal_2.jpg").unlink()
    with pytest.raises(DataError, match=r"Bengal_2\.jpg"):
        download("pet", tmp_path / "b")
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("name", "said"), [("car", "since April 2023"), ("sun", "mid-2025"), ("imagenet", "register at"), ("folder", "your own")]
)
def test_sets_without_a_source(tmp_path: Path, name: str, said: str) -> None:
    """Dead sources, registration and sets of one's own: the recipe, and torchvision is not called."""
    with pytest.raises(UserError, match=f"cannot be downloaded .*{said}"):
        download(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_torchvision_has_the_classes() -> None:
    """The names in the table against the installed torchvision, each of which takes `download`."""
    for name in TORCHVISION.values():
        cls: Any = getattr(torchvision.datasets, name)
        assert "download" in cls.__init__.__code__.co_varnames


def test_the_verb_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`bamboo sets download` says where the set is and how to use it; a network that fails is exit code 2."""
    monkeypatch.setattr(module, "_fetch", lambda described, folder: official.dtd(folder))
    assert main(["sets", "download", "dtd", str(tmp_path)]) == 0
    assert f"dtd: whole, in {tmp_path / 'dtd' / 'dtd'}; use it with: --dataset dtd --data-root {tmp_path}" in capsys.readouterr().out
    assert main(["sets", "download", "car", str(tmp_path)]) == 2
    assert "bamboo sets: car: cannot be downloaded (dead since April 2023)" in capsys.readouterr().err
