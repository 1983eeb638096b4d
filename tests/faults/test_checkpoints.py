"""What happens to checkpoints on a bad day: a full disk, a write that is slow, a run that ends while one is being written."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bamboo.cli.errors import EXIT_RESUMABLE, BambooError
from bamboo.cli.main import main
from bamboo.pretrain.checkpoint import Checkpoint, CheckpointFolder, Position, read_checkpoint
from bamboo.pretrain.writer import Writer
from tests.pretrain.launch import options

MIB = 1 << 18  # float32 values


def large(step: int, num_values: int = MIB) -> Checkpoint:
    """Returns a checkpoint of a given size."""
    weights = {"weight": torch.full((num_values,), float(step))}
    return Checkpoint(Position(step, step, 0, 1), weights, None, {"groups": [], "state": {}}, {})


class Stop(BambooError):  # noqa: N818  # an end, and no error
    """The end of a run that was asked to stop."""

    exit_code = EXIT_RESUMABLE


class Slow(CheckpointFolder):
    """A folder that waits for leave before each write."""

    def __init__(self, run: Path, keep: int) -> None:
        super().__init__(run, keep)
        self.leave = threading.Semaphore(0)
        self.saved: list[int] = []

    def save(self, checkpoint: Checkpoint) -> Path:
        self.leave.acquire()
        path = super().save(checkpoint)
        self.saved.append(checkpoint.position.step)
        return path


def test_training_goes_on_while_one_is_written(tmp_path: Path) -> None:
    """`save` returns before the checkpoint is there; the next `save`, and the end of the block, wait for it."""
    folder = Slow(tmp_path, keep=3)
    with Writer(folder, background=True) as writer:
        writer.save(large(1))
        assert folder.newest() is None
        threading.Timer(0.2, folder.leave.release).start()
        writer.save(large(2))
        assert folder.saved == [1]
        threading.Timer(0.2, folder.leave.release).start()
    assert folder.saved == [1, 2]
    newest = folder.newest()
    assert newest is not None
    assert torch.equal(read_checkpoint(newest).model["weight"], large(2).model["weight"])


def test_in_the_foreground_it_is_there_at_once(tmp_path: Path) -> None:
    """background=False: on disk when `save` returns."""
    folder = CheckpointFolder(tmp_path, keep=1)
    Writer(folder, background=False).save(large(1))
    newest = folder.newest()
    assert newest is not None
    assert read_checkpoint(newest).position.step == 1


def test_a_disk_that_fills_up_in_the_background(tmp_path: Path, mount_disk: Callable[[str], Path]) -> None:
    """A real file system of 3 MiB and checkpoints of 1 MiB, all kept: the next call raises, the last good one is whole, no half stays."""
    disk = mount_disk("3m")
    folder = CheckpointFolder(disk, keep=9)
    writer = Writer(folder, background=True)
    with pytest.raises(OSError, match="No space left"):
        for step in range(1, 9):
            writer.save(large(step))
    writer.wait()  # the error has been told
    newest = folder.newest()
    assert newest is not None
    step = read_checkpoint(newest).position.step
    assert step >= 1
    assert torch.equal(read_checkpoint(newest).model["weight"], large(step).model["weight"])
    assert not list((disk / "checkpoints").glob(".step-*"))
    assert (disk / "checkpoints" / "latest").read_text() == newest.name + "\n"


@pytest.mark.parametrize("ending", [None, Stop("stopped, all is saved")])
def test_a_failed_write_is_not_lost_at_the_end(tmp_path: Path, mount_disk: Callable[[str], Path], ending: Stop | None) -> None:
    """The last checkpoint of a run that ends, or that was told to stop, does not fit: an error, not the word that all is saved."""
    folder = CheckpointFolder(mount_disk("1m"), keep=9)
    with pytest.raises(OSError, match="No space left"), Writer(folder, background=True) as writer:
        writer.save(large(2, 2 * MIB))
        if ending is not None:
            raise ending


def test_a_failed_write_does_not_hide_why_a_run_failed(
    tmp_path: Path, mount_disk: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Training fails while a write fails: training's error comes through, the write's is told on standard error."""
    folder = CheckpointFolder(mount_disk("1m"), keep=9)
    with pytest.raises(ValueError, match="the cause"), Writer(folder, background=True) as writer:
        writer.save(large(2, 2 * MIB))
        raise ValueError("the cause")
    assert "No space left" in capsys.readouterr().err


def test_a_run_that_fails_keeps_what_was_being_written(pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk takes its time and training dies right after step 2: its checkpoint is whole all the same, and the run goes on from it."""
    save = CheckpointFolder.save

    def slowly(folder: CheckpointFolder, checkpoint: Checkpoint) -> Path:
        time.sleep(0.3)
        return save(folder, checkpoint)

    def die(*_: object) -> None:
        raise OSError("the machine burns")

    settings = {"run.duration": "4 steps", "run.checkpoint_every": "2 steps", "run.log_every": "4 steps"}
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFolder, "save", slowly)
        patch.setattr("bamboo.pretrain.trainer.Trainer._log", die)
        assert main(["pretrain", *options(pool, tmp_path, settings)]) == 1
    newest = CheckpointFolder(tmp_path, keep=2).newest()
    assert newest is not None
    assert read_checkpoint(newest).position.step == 2
    assert main(["pretrain", *options(pool, tmp_path, settings)]) == 0
