"""What happens to checkpoints on a bad day: a full disk, a write that is slow, a run that ends while one is being written."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bamboo.cli.errors import EXIT_RESUMABLE, BambooError
from bamboo.cli.main import main
from bamboo.pretrain.checkpoints.checkpoint import CheckpointFolder, read_checkpoint
from bamboo.pretrain.checkpoints.meeting import Meeting
from bamboo.pretrain.checkpoints.snapshot import Piece, Position, Snapshot
from bamboo.pretrain.checkpoints.writer import Writer
from tests.pretrain.launch import ENVIRONMENT, free_port, options

MIB = 1 << 18  # float32 values


def weights(step: int, num_values: int = MIB) -> torch.Tensor:
    """Returns weights of a given size, whose values tell the step."""
    return torch.full((num_values,), float(step))


def large(step: int, num_values: int = MIB) -> Callable[[], Snapshot]:
    """Returns what takes a snapshot of a given size."""
    pieces = {"model": {"weight": Piece(weights(step, num_values), (num_values,), 0)}}
    return lambda: Snapshot(Position(step, step, 0, 1), pieces, {"pinned": {}, "optimizer": {"groups": [], "state": {}}})


class Stop(BambooError):  # noqa: N818  # an end, and no error
    """The end of a run that was asked to stop."""

    exit_code = EXIT_RESUMABLE


class Slow(CheckpointFolder):
    """A folder that waits for leave before each write."""

    def __init__(self, run: Path, keep: int) -> None:
        super().__init__(run, keep)
        self.leave = threading.Semaphore(0)
        self.saved: list[int] = []

    def save(self, snapshot: Snapshot, meeting: Meeting | None = None) -> Path:
        self.leave.acquire()
        path = super().save(snapshot, meeting)
        self.saved.append(snapshot.position.step)
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
    assert torch.equal(read_checkpoint(newest).model["weight"].whole(), weights(2))


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
    assert torch.equal(read_checkpoint(newest).model["weight"].whole(), weights(step))
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

    def slowly(folder: CheckpointFolder, snapshot: Snapshot, meeting: Meeting) -> Path:
        time.sleep(0.3)
        return save(folder, snapshot, meeting)

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


def start_ranks_of(scene: str, folder: Path, world_size: int = 3) -> "list[subprocess.Popen[str]]":
    """Starts the ranks of a scene of `tests.faults.saving_ranks`, with no launcher that would end those that are left."""
    place = {**os.environ, **ENVIRONMENT, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world_size)}
    command = [sys.executable, "-m", "tests.faults.saving_ranks", scene, str(folder)]
    return [
        subprocess.Popen(
            command, env={**place, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for rank in range(world_size)
    ]


def finish_all(processes: "list[subprocess.Popen[str]]") -> list[str]:
    """Returns what each rank printed, within a minute and a half."""
    try:
        return [process.communicate(timeout=90)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()


def only_the_first_is_left(folder: Path) -> None:
    """Fails unless the checkpoint after step 1 is whole, the newest, and all there is."""
    newest = CheckpointFolder(folder, keep=9).newest()
    assert newest is not None
    assert sorted(path.name for path in newest.parent.iterdir()) == ["latest", "step-00000001"]


@pytest.mark.slow
@pytest.mark.parametrize("when", ["next save", "end"])
def test_one_rank_that_cannot_write_in_the_background(tmp_path: Path, when: str) -> None:
    """Three processes; the kernel lets rank 1 write no more than 64 KiB: all hear of it at the next save or at the end, by its name."""
    processes = start_ranks_of(f"no room, {when}", tmp_path)
    for rank, output in enumerate(finish_all(processes)):
        assert f"rank {rank} at the {when}: [Errno 27] File too large (on rank 1): " in output, output
        assert "model-00002-of-00003.safetensors" in output
    assert [process.returncode for process in processes] == [0, 0, 0]
    only_the_first_is_left(tmp_path)


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_rank_killed_while_it_writes(tmp_path: Path, victim: int) -> None:
    """Three processes, SIGKILL in the middle of a rank's file: the others hear within seconds, and the checkpoint before is the newest."""
    processes = start_ranks_of(f"killed {victim}", tmp_path)
    outputs = finish_all(processes)
    assert [process.returncode for process in processes] == [-signal.SIGKILL if rank == victim else 0 for rank in range(3)], outputs
    for rank, output in enumerate(outputs):
        found = re.search(r"heard after (\S+) s: another rank is gone", output)
        assert rank == victim or (found and float(found[1]) < 30), output
    if victim:
        only_the_first_is_left(tmp_path)
        return
    newest = CheckpointFolder(tmp_path, keep=9).newest()
    assert newest is not None
    assert newest.name == "step-00000001"
    assert finish_all(start_ranks_of("whole", tmp_path))
    assert not list((tmp_path / "checkpoints").glob(".step-*")), "what rank 0 left is swept by the next save"


@pytest.mark.slow
def test_a_rank_needs_no_more_memory_than_its_share(tmp_path: Path) -> None:
    """Two processes, FSDP2 on 128 MiB of weights: saving raises each one's peak by its own 64 MiB, within 16 MiB."""
    for output in finish_all(start_ranks_of("wide", tmp_path, world_size=2)):
        found = re.search(r"own (\S+) MiB, peak grew by (\S+) MiB", output)
        assert found, output
        own, grown = float(found[1]), float(found[2])
        assert own == pytest.approx(64, abs=2)
        assert grown < own + 16
