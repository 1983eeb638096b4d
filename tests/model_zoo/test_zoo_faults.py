"""Two processes, a kill, a full disk: the cache holds the right file or none."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.loopback import Loopback, slowly, unlabelled
from tests.model_zoo.released import registry, weights

FILE = weights()
SHA256 = hashlib.sha256(FILE).hexdigest()


def start(tmp_path: Path, server: Loopback, cache: Path) -> "subprocess.Popen[str]":
    """Starts `bamboo zoo fetch small` in a process of its own."""
    file = registry(tmp_path, {"url": server.url("small.safetensors"), "sha256": SHA256})
    command = [sys.executable, "-m", "bamboo.cli", "zoo", "fetch", "small", "--registry", str(file), "--cache", str(cache)]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf")}
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_two_processes_fetch_once(tmp_path: Path, server: Loopback) -> None:
    """Two real processes and a server that takes a second or two: one request, both end well with the same file."""
    server.script = [slowly(len(FILE) // 20, 0.15)]
    both = [start(tmp_path, server, tmp_path / "cache") for _ in range(2)]
    answers = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    assert len(server.requests) == 1
    assert all(SHA256 in out for out, _ in answers)
    assert sum("another process is fetching it" in err for _, err in answers) <= 1
    assert (tmp_path / "cache/zoo/small/small.safetensors").read_bytes() == FILE


def test_a_killed_fetch_goes_on(tmp_path: Path, server: Loopback) -> None:
    """kill -9 in the middle: no file under the final name, its lock blocks nobody, and the next fetch asks for the rest only."""
    server.script = [slowly(len(FILE) // 50, 0.1)]
    folder = tmp_path / "cache/zoo/small"
    victim = start(tmp_path, server, tmp_path / "cache")
    part = folder / "small.safetensors.part"
    deadline = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size > len(FILE) // 10) and time.monotonic() < deadline:
        time.sleep(0.02)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    kept = part.stat().st_size
    assert 0 < kept < len(FILE)
    assert not (folder / "small.safetensors").exists()
    again = start(tmp_path, server, tmp_path / "cache")
    out, err = again.communicate(timeout=60)
    assert again.returncode == 0, err
    assert SHA256 in out
    assert [asked for _, asked, _ in server.requests] == ["", f"bytes={kept}-"]
    assert (folder / "small.safetensors").read_bytes() == FILE


@pytest.fixture
def small_disk(mount_disk: Callable[[str], Path]) -> Path:
    """Returns the mount point of a real file system of 256 KiB, smaller than the file."""
    return mount_disk("256k")


@pytest.mark.parametrize("announced", [True, False])
def test_a_full_disk_leaves_no_bad_file(tmp_path: Path, server: Loopback, small_disk: Path, announced: bool) -> None:
    """A file too large for the disk, its size announced or not: the reason, no file under the final name, and elsewhere it works."""
    assert len(FILE) > 256 * 1024

    def unannounced(answer: object) -> None:
        headers = answer.headers  # type: ignore[attr-defined]  # the server passes an Answer
        headers.pop("Content-Length")
        headers["Connection"] = "close"
        answer.send()  # type: ignore[attr-defined]  # the server passes an Answer

    server.script = [] if announced else [unlabelled(unannounced)]
    process = start(tmp_path, server, small_disk)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (1, 2)
    assert ("are free; make room" if announced else "No space left on device") in err
    assert "Traceback" not in err
    assert not (small_disk / "zoo/small/small.safetensors").exists()
    again = start(tmp_path, server, tmp_path / "cache")
    assert again.communicate(timeout=60)[1].count("Traceback") == 0
    assert again.returncode == 0
