"""A full or read-only disk under a run: a clear message, and the last good checkpoint stays whole."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bamboo.cli.main import main
from bamboo.pretrain.checkpoints.checkpoint import CheckpointFolder, read_checkpoint
from tests.pretrain.launch import options


@pytest.fixture
def small_disk(mount_disk: Callable[[str], Path]) -> Path:
    """Returns the mount point of a real file system of 4 MiB; a checkpoint of test_vit takes 1.1 MiB."""
    return mount_disk("4m")


def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(pool: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Space for a few checkpoints only: exit code 1 with the file and the reason, the newest one whole, nothing half-written."""
    settings = {"run.keep_checkpoints": "100", "run.checkpoint_every": "2 steps", "optimizer.name": "adamw"}
    assert main(["pretrain", *options(pool, small_disk / "run", settings)]) == 1
    message = capsys.readouterr().err
    assert "No space left on device" in message
    assert "Traceback" not in message
    checkpoints = small_disk / "run" / "checkpoints"
    assert not [path for path in checkpoints.iterdir() if path.name.endswith(".tmp")]
    newest = CheckpointFolder(small_disk / "run", keep=100).newest()
    assert newest is not None
    assert read_checkpoint(newest).position.step >= 2


def test_a_read_only_disk_is_named(pool: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run folder that cannot be made: exit code 1 and the reason, before any step."""
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert main(["pretrain", *options(pool, small_disk / "run", {})]) == 1
    assert "Read-only file system" in capsys.readouterr().err
