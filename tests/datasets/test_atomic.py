"""Files that are there whole or not at all: exceptions, a full disk, a read-only disk, permissions."""

import errno
import json
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bamboo.datasets import atomic
from bamboo.datasets.atomic import atomic_file, publish_folder, sha256_file, sha256_json, write_bytes, write_json, write_text


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB of our own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"mounting a small disk needs root: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    """Nothing under the final name before, the whole after, and folders are made on the way."""
    path = tmp_path / "a" / "b" / "file.bin"
    with atomic_file(path) as file:
        file.write(b"one")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"one"
    assert names(path.parent) == ["file.bin"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
@pytest.mark.parametrize("before", [None, b"old"])
def test_an_exception_leaves_everything_as_it_was(tmp_path: Path, error: BaseException, before: bytes | None) -> None:
    """The old bytes, or none, and no temporary file."""
    path = tmp_path / "file.bin"
    if before is not None:
        path.write_bytes(before)
    with pytest.raises(type(error)), atomic_file(path) as file:
        file.write(b"half")
        raise error
    assert names(tmp_path) == ([] if before is None else ["file.bin"])
    assert before is None or path.read_bytes() == before


def test_a_failing_fsync_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk that reports its error only when asked to be sure."""
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def fail(_descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(atomic.os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        write_bytes(path, b"new")
    assert (path.read_bytes(), names(tmp_path)) == (b"old", ["file.bin"])


@pytest.mark.parametrize("in_pieces", [False, True])
def test_a_full_disk_is_named_and_leaves_the_old_file(small_disk: Path, in_pieces: bool) -> None:
    """A disk of 64 KiB and 1 MiB of data: ENOSPC with the path, old bytes, no temporary file, room again afterwards."""
    path = small_disk / "file.bin"
    write_bytes(path, b"old")
    with pytest.raises(OSError, match="No space left on device") as caught, atomic_file(path) as file:
        for _ in range(1024 if in_pieces else 1):
            file.write(bytes(1024 if in_pieces else 1 << 20))
    assert caught.value.errno == errno.ENOSPC
    assert str(path) in str(caught.value)
    assert (path.read_bytes(), names(small_disk)) == (b"old", ["file.bin"])
    write_bytes(path, bytes(32 * 1024))


def test_a_disk_that_turned_read_only_is_an_error_that_names_it(small_disk: Path) -> None:
    """Root writes through permissions, but not onto a disk mounted read-only."""
    path = small_disk / "file.bin"
    write_bytes(path, b"old")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(OSError, match="Read-only file system") as caught:
        write_bytes(path, b"new")
    assert str(small_disk) in str(caught.value)
    assert (path.read_bytes(), names(small_disk)) == (b"old", ["file.bin"])


def test_a_folder_that_cannot_be_is_an_error_that_names_it(tmp_path: Path) -> None:
    """A path below a file, for which no permission helps."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file") as caught:
        write_bytes(tmp_path / "file" / "below", b"x")
    assert isinstance(caught.value, NotADirectoryError | FileExistsError)


def test_an_error_of_the_callers_own_keeps_its_name(tmp_path: Path) -> None:
    """Only what writing itself raises gets the path: an input that is missing keeps its own name."""
    with pytest.raises(FileNotFoundError) as caught, atomic_file(tmp_path / "out"):
        (tmp_path / "in").read_bytes()
    assert caught.value.filename == str(tmp_path / "in")


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_permissions_are_those_of_an_ordinary_file(tmp_path: Path, mask: int) -> None:
    """mode = 0666 & ~umask, as `open` would have made it, and not the 0600 of a temporary file."""
    before = os.umask(mask)
    try:
        write_text(tmp_path / "ours", "x")
        (tmp_path / "theirs").write_text("x")
    finally:
        os.umask(before)
    ours, theirs = (stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours", "theirs"))
    assert ours == theirs == 0o666 & ~mask


def test_a_folder_is_published_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file and folder below is fsynced before the one rename, and the parent after it."""
    temporary, final = tmp_path / ".made", tmp_path / "final"
    (temporary / "in" / "deep").mkdir(parents=True)
    (temporary / "in" / "deep" / "a").write_text("a")
    (temporary / "b").write_text("b")
    synced: list[str] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(atomic.os, "fsync", record)
    publish_folder(temporary, final)
    below = [temporary, *(temporary / name for name in ("in", "in/deep", "in/deep/a", "b"))]
    assert sorted(synced[:-1]) == sorted(map(str, below))
    assert synced[-1] == str(tmp_path)
    assert (final / "in" / "deep" / "a").read_text() == "a"
    assert not temporary.exists()


@pytest.mark.parametrize("filled", [False, True])
def test_a_folder_is_never_published_over_another(tmp_path: Path, filled: bool) -> None:
    """An empty folder, which rename would replace, and a full one, which it would not."""
    temporary, final = tmp_path / ".made", tmp_path / "final"
    temporary.mkdir()
    final.mkdir()
    if filled:
        (final / "a").write_text("old")
    with pytest.raises(FileExistsError, match="final"):
        publish_folder(temporary, final)
    assert temporary.is_dir()
    assert names(final) == (["a"] if filled else [])


def test_json_is_readable_and_keeps_every_letter(tmp_path: Path) -> None:
    """json.loads of the file against the value."""
    value = {"name": "Müßiggang 竹", "list": [1, 2.5, None, True]}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert "竹" in text
    assert text.endswith("}\n")


def test_hashes_are_those_of_the_standard_tools(tmp_path: Path) -> None:
    """sha256 of `abc` from FIPS 180-2; a file longer than one chunk against coreutils; JSON in any order of keys."""
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "long").write_bytes(bytes(range(256)) * 8193)
    tool = subprocess.run(["sha256sum", tmp_path / "long"], capture_output=True, text=True, check=True)
    assert sha256_file(tmp_path / "long") == tool.stdout.split()[0]
    assert sha256_json({"a": 1, "b": [2]}) == sha256_json({"b": [2], "a": 1}) != sha256_json({"a": 1, "b": 2})
