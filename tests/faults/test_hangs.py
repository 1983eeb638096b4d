"""A rank that hangs: the job ends within seconds of the limit, and every rank that speaks names the culprit and what it is at."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pretrain.launch import ENVIRONMENT, finish, options, rank_processes, start, wait_for_step

LIMITS = {"health.first_step_s": "40", "health.step_s": "4", "run.eval_batch_size": "4"}


def hang(pool: Path, folder: Path, where: str, step: int, settings: dict[str, str], num_ranks: int) -> tuple[int, str]:
    """Starts `tests.pretrain.hanging` with rank 1 of 2, or the only one, hanging; returns (exit code, output)."""
    arguments = ["tests.pretrain.hanging", where, str(step), str(num_ranks - 1), *options(pool, folder, {**LIMITS, **settings})]
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks), "-m"] if num_ranks > 1 else []
    command = [sys.executable, "-m", *torchrun, *arguments]
    environment = {**os.environ, **ENVIRONMENT}
    process = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return finish(process, 120)


def test_one_process_that_hangs_in_its_loader(pool: Path, tmp_path: Path) -> None:
    """A process whose third batch never comes ends with 1 soon after the limit, names the operation, and shows where each thread stands."""
    code, output = hang(pool, tmp_path, "loader", 3, {"health.step_s": "2"}, 1)
    assert code == 1, output
    told = re.search(r"rank 0 \(node \S+, process \d+\): waiting for a batch, step 3, for (\d+) s\n", output)
    assert told, output
    assert 2 <= int(told[1]) <= 7
    assert "health.step_s=2" in output
    assert "hanging_training" in output, "the stacks"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "step", "words"),
    [
        ("loader", 4, "waiting for a batch, step 4"),
        ("forward", 4, "in the forward pass, step 4"),
        ("loader", 1, "waiting for a batch, step 1"),
        ("evaluation", 1, r"evaluating \(batch \d+\), step 2"),
    ],
)
def test_a_rank_that_hangs(pool: Path, tmp_path: Path, where: str, step: int, words: str) -> None:
    """Rank 1 of 2 hangs while rank 0 waits for it in a collective: both are told of, and rank 1 and its operation are named as culprit."""
    long = {"health.first_step_s": "8"} if step == 1 else {}
    code, output = hang(pool, tmp_path, where, step, {**long, "run.eval_every": "2 steps"}, 2)
    assert code == 1, output
    assert re.search(rf"→ rank 1 on \S+, {words}: the others have passed that and wait for it", output), output


@pytest.mark.slow
def test_a_rank_that_is_frozen(pool: Path, tmp_path: Path) -> None:
    """SIGSTOP to rank 1: rank 0 ends within seconds of the limit, and says that rank 1 gives no sign of life."""
    process = start(2, options(pool, tmp_path, {**LIMITS, "run.duration": "100000 steps"}))
    wait_for_step(process, tmp_path, 3)
    ranks = rank_processes(process)
    frozen = next(pid for pid in ranks if b"RANK=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    os.kill(frozen, signal.SIGSTOP)
    stopped = time.monotonic()
    while not (tmp_path / "late").exists():
        assert time.monotonic() - stopped < 30
        time.sleep(0.1)
    time.sleep(4)
    os.kill(frozen, signal.SIGKILL)  # torchrun ends it by SIGKILL, but waits for half a minute
    code, output = finish(process, 60)
    assert code == 1
    assert "no word from rank 1: dead, frozen" in output
    assert "rank 1 did not answer, and will be what they wait for" in output or "→ rank 1" in output, output
