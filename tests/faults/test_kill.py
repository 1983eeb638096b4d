"""What happens when a process dies in the middle of an epoch: the same command goes on as if nothing had happened."""

import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from bamboo.pretrain.log import read_log
from tests.pretrain.launch import finish, kill_group, options, rank_processes, start, train, wait_for_step

COMPARED = ("step", "samples", "loss", "grad_norm", "lr", "stream")


def trace(folder: Path) -> list[tuple[Any, ...]]:
    """Returns what must be equal of every training step: position, stream fingerprint, loss and gradient norm."""
    return [tuple(row[name] for name in COMPARED) for row in read_log(folder, "train")]


@pytest.fixture(scope="module")
def uninterrupted(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Returns run folders of uninterrupted runs by number of ranks."""
    folders = {ranks: tmp_path_factory.mktemp(f"whole{ranks}") for ranks in (0, 2)}
    for ranks, folder in folders.items():
        train(pool, folder, ranks)
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("victims", ["one rank", "whole group"])
def test_killed_ranks_resume_bit_equal(pool: Path, tmp_path: Path, uninterrupted: dict[int, Path], workers: str, victims: str) -> None:
    """Two ranks, SIGKILL at a random step, same command again: losses and stream equal the uninterrupted run's, bit for bit."""
    arguments = options(pool, tmp_path, {"data.workers": workers})
    step = random.randint(2, 40)
    process = start(2, arguments)
    wait_for_step(process, tmp_path, step)
    ranks = rank_processes(process)
    assert len(ranks) == 2
    if victims == "one rank":
        os.kill(random.choice(ranks), signal.SIGKILL)
        assert finish(process)[0] != 0
    else:
        kill_group(process, ranks)
    code, output = finish(start(2, arguments))
    assert code == 0, output
    starts = [row["step"] for row in read_log(tmp_path, "start")]
    assert trace(tmp_path) == trace(uninterrupted[2]), f"killed at step {step}, resumed at {starts}"
    assert len(trace(tmp_path)) == 60


def test_killed_process_resumes_bit_equal(pool: Path, tmp_path: Path, uninterrupted: dict[int, Path]) -> None:
    """One process with a loader worker, SIGKILL at a random step: the resumed run equals the uninterrupted one bit for bit."""
    arguments = options(pool, tmp_path, {"data.workers": "1"})
    process = start(0, arguments)
    wait_for_step(process, tmp_path, random.randint(8, 40))
    kill_group(process, [])
    code, output = finish(start(0, arguments))
    assert code == 0, output
    assert 0 < max(row["step"] for row in read_log(tmp_path, "start")) < 60, "must have resumed from a checkpoint"
    assert trace(tmp_path) == trace(uninterrupted[0])


@pytest.mark.slow
@pytest.mark.parametrize("mixing", ["0.0", "0.4"])
def test_resume_at_another_number_of_ranks(pool: Path, tmp_path: Path, mixing: str) -> None:
    """Killed at two ranks, resumed at three, then at one, with other accumulation: stream and, to rounding, losses of one whole process."""
    settings = {"objective.mixup": mixing, "objective.cutmix": mixing, "run.accumulate": "2"}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    code, output = finish(start(0, options(pool, whole, settings)))
    assert code == 0, output
    for ranks, passes, until in ((2, "3", 12), (3, "1", 30)):
        process = start(ranks, options(pool, killed, {**settings, "run.accumulate": passes}))
        wait_for_step(process, killed, until)
        kill_group(process, rank_processes(process))
    code, output = finish(start(0, options(pool, killed, settings)))
    assert code == 0, output
    expected, actual = read_log(whole, "train"), read_log(killed, "train")
    assert [row["stream"] for row in actual] == [row["stream"] for row in expected]
    assert [row["loss"] for row in actual] == pytest.approx([row["loss"] for row in expected], rel=2e-4)
