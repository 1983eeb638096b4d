"""Packing while things go wrong: kills, interrupts, full and read-only disks, failures in worker processes."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bamboo.datasets import shard_writer

Bamboo = Callable[..., tuple[int, str, str]]
ImageBytes = Callable[..., bytes]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_two_packs_never_share_a_folder(photo_folder: Path, tmp_path: Path, bamboo: Bamboo) -> None:
    """While another process holds OUT's lock: exit 2, and it may be waited for."""
    parts = tmp_path / "o" / ".parts"
    parts.mkdir(parents=True)
    with (parts / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, _, errors = bamboo("pack", photo_folder, "--out", tmp_path / "o")
    assert code == 2
    assert "another process is packing into it" in errors
    assert bamboo("pack", photo_folder, "--out", tmp_path / "o")[0] == 0


def test_a_full_disk_leaves_nothing_half_written(
    photo_folder: Path, tmp_path: Path, bamboo: Bamboo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing the second shard runs out of space: exit 1, shard named, no temporary file; afterwards it goes on to the same bytes."""
    command = ("pack", photo_folder, "--samples-per-shard", 7, "--processes", 1, "--out")
    assert bamboo(*command, tmp_path / "reference")[0] == 0
    real, out = shard_writer.webdataset.TarWriter.write, tmp_path / "o"
    written = []

    def write(self, sample):
        written.append(sample)
        if len(written) > 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, sample)

    with monkeypatch.context() as patch:
        patch.setattr(shard_writer.webdataset.TarWriter, "write", write)
        code, _, errors = bamboo(*command, out)
    assert code == 1
    assert "No space left on device" in errors
    assert "shard-000001.tar" in errors
    assert not list(out.rglob("*.tmp"))
    assert sorted(path.name for path in out.glob("*.*")) == [".parts", "shard-000000.tar"]
    assert bamboo(*command, out)[0] == 0
    assert contents(out) == contents(tmp_path / "reference")


def test_small_and_read_only_disks(photo_folder: Path, tmp_path: Path, bamboo: Bamboo) -> None:
    """Real file systems: a tmpfs of 64 kB runs full, a read-only one refuses; exit 1 and a message, no temporary file."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    try:
        code, _, errors = bamboo("pack", photo_folder, "--out", disk / "o", "--processes", 1)
        assert code == 1
        assert "No space left on device" in errors
        assert not list(disk.rglob("*.tmp"))
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        code, _, errors = bamboo("pack", photo_folder, "--out", disk / "p", "--processes", 1)
        assert code == 1
        assert "Read-only file system" in errors
    finally:
        subprocess.run(["umount", disk], check=True)


def test_any_number_of_processes_makes_the_same_bytes(packed: Path, photo_folder: Path, tmp_path: Path, bamboo: Bamboo) -> None:
    """Two worker processes against one: every file of the folder equal, dataset.json included."""
    out = tmp_path / "two"
    assert bamboo("pack", photo_folder, "--out", out, "--samples-per-shard", 7, "--processes", 2)[0] == 0
    assert contents(out) == contents(packed)


def test_a_failure_in_a_worker_process_is_explained(photo_folder: Path, tmp_path: Path, bamboo: Bamboo) -> None:
    """An unreadable image met by one of two workers: the same message and exit code as in one process."""
    (photo_folder / "plant" / "photo 0.jpg").write_bytes(b"")
    code, _, errors = bamboo("pack", photo_folder, "--out", tmp_path / "o", "--samples-per-shard", 3, "--processes", 2)
    assert code == 1
    assert "plant/photo 0.jpg: empty file" in errors
    assert not list((tmp_path / "o").rglob("*.tmp"))


@pytest.mark.parametrize(
    ("processes", "sent", "code"),
    [
        (1, signal.SIGKILL, -9),
        pytest.param(2, signal.SIGKILL, -9, marks=pytest.mark.slow),
        pytest.param(2, signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_kill_and_resume_to_identical_bytes(
    tmp_path: Path, bamboo: Bamboo, image_bytes: ImageBytes, processes: int, sent: signal.Signals, code: int
) -> None:
    """kill -9 or Ctrl-C in the middle of a pack, workers end too, the same command goes on: the bytes of a pack left alone."""
    pool = tmp_path / "pool"
    for number in range(60):
        folder = pool / f"class {number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(image_bytes(number, (700, 500), "PNG", compress_level=1))
    options = ["pack", str(pool), "--samples-per-shard", "4", "--resize", "300", "--processes", str(processes), "--out"]
    out = tmp_path / "killed"
    with subprocess.Popen(_bamboo(options, out), start_new_session=True) as process:
        _wait_for(lambda: len(list(out.glob("*.tar"))) >= 2)
        os.kill(process.pid, sent)
    assert process.returncode == code
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert 2 <= len(finished) < 15
    assert not (out / "dataset.json").exists()
    _wait_for(lambda: not _in_session(process.pid))
    refused, _, errors = bamboo(*options[:3], "5", *options[4:], out)
    assert refused == 2
    assert "samples_per_shard was 4, is 5" in errors
    (out / ".shard-000009.tar.abc.tmp").write_bytes(b"left by the killed run")
    assert bamboo(*options, out)[0] == 0
    assert bamboo(*options[:-2], 1, "--out", tmp_path / "alone")[0] == 0
    untouched = [name for name, modified in finished.items() if (out / name).stat().st_mtime_ns == modified]
    assert len(untouched) >= len(finished) - processes, "finished shards are not done again"
    assert contents(out) == contents(tmp_path / "alone")


def _bamboo(options: list[str], out: Path) -> list[str]:
    start = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"  # whatever this process ignores
    return [sys.executable, "-c", f"{start}; from bamboo.cli.main import main; sys.exit(main())", "shards", *options, str(out)]


def _wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def _in_session(session: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(entry.name))
    return found
