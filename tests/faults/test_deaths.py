"""A rank that dies: the others end within seconds, one paragraph says who, how and what follows, and a restart loses no step."""

import os
import random
import re
import signal
import time
from pathlib import Path

import pytest

from bamboo.pretrain.launcher.deaths import Death, first_to_die, is_stop, memory_kills, newest_step, tell
from bamboo.pretrain.log import read_log
from tests.faults.test_kill import trace
from tests.pretrain.launch import finish, options, rank_processes, start, train, wait_for_step

LAUNCHER = "bamboo.pretrain.launch"
SETTINGS = {"run.duration": "40 steps", "run.checkpoint_every": "5 steps"}


def test_who_died_first() -> None:
    """By hand: a signal explains errors of the others, torchrun's own SIGTERM explains nothing, and 75 is no death."""
    killed, failed, ended = Death(3, 1, 13, -9), Death(0, 0, 10, 1), Death(1, 1, 11, -15)
    assert first_to_die([failed, killed, ended]) == [killed]
    assert first_to_die([failed, ended]) == [failed, ended]
    assert is_stop([Death(0, 0, 10, 75), ended])
    assert not is_stop([Death(0, 0, 10, 75), failed])
    assert not is_stop([ended])


@pytest.mark.parametrize(
    ("code", "kernel", "words"),
    [
        (-9, False, "was killed (signal 9, SIGKILL): by the kernel if memory ran out"),
        (-9, True, "was killed by the kernel (signal 9, SIGKILL): this job's memory ran out"),
        (-11, False, "was ended by signal 11, SIGSEGV"),
        (1, False, "ended with exit code 1, of an error"),
        (138, False, "told to stop twice, by SIGUSR1"),
    ],
)
def test_how_it_died(code: int, kernel: bool, words: str) -> None:
    """Exit codes and signals, each as a person says it; and what follows, with restarts left and without."""
    deaths = [Death(0, 0, 10, 1), Death(5, 1, 17, code, "logs/1/stderr.log")] if code < 0 else [Death(5, 1, 17, code, "logs/1/stderr.log")]
    text = tell(deaths, restart=1, max_restarts=2, step=20, out_of_memory=kernel)
    assert text.startswith("bamboo pretrain: rank 5 (node ")
    assert "local rank 1, process 17)" in text
    assert words in text
    assert "its last words: logs/1/stderr.log" in text
    assert "restart 1 of 2, from the checkpoint after step 20" in text
    assert ("rank 0 had failed already" in text) == (code < 0)
    assert "no restarts were asked for" in tell(deaths, restart=0, max_restarts=0, step=None)
    assert "the same command goes on from the start" in tell(deaths, restart=0, max_restarts=0, step=None)


def test_what_the_launcher_finds_out(pool: Path, tmp_path: Path) -> None:
    """The newest checkpoint's step from torchrun's arguments, and the kernel's count of kills from a control group's file."""
    words = ["--nproc-per-node", "2", "-m", "bamboo.pretrain", *options(pool, tmp_path, {})]
    assert newest_step(words) is None
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "latest").write_text("step-00000035\n")
    assert newest_step(words) == 35
    assert newest_step(["-m", "something.else"]) is None
    (tmp_path / "memory.events").write_text("low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n")
    assert memory_kills(tmp_path) == 2
    assert memory_kills(tmp_path / "nowhere") == 0


@pytest.mark.slow
@pytest.mark.parametrize("engine", [{}, {"engine.kind": "fsdp"}], ids=["DDP", "FSDP2"])
def test_a_rank_is_killed_and_all_go_on(pool: Path, tmp_path: Path, engine: dict[str, str]) -> None:
    """SIGKILL to a rank at a random step, one restart: told of, resumed from the last checkpoint, bit-equal to a run without."""
    whole = {name.replace(".", "__"): value for name, value in {**SETTINGS, **engine}.items()}
    train(pool, tmp_path / "whole", 2, **whole)
    folder = tmp_path / "killed"
    process = start(2, options(pool, folder, {**SETTINGS, **engine}), ["--max-restarts", "1"], LAUNCHER)
    wait_for_step(process, folder, random.randint(10, 25))
    victim = random.choice(rank_processes(process))
    os.kill(victim, signal.SIGKILL)
    killed = time.time()
    code, output = finish(process)
    assert code == 0, output
    told = re.search(r"bamboo pretrain: rank \d \(node \S+, local rank \d, process (\d+)\) was killed", output)
    assert told, output
    assert int(told[1]) == victim
    promised = re.search(r"restart 1 of 1, from the (?:checkpoint after step (\d+)|start)", output)
    assert promised, output
    again = [row for row in read_log(folder, "start") if row["time"] > killed]
    assert [row["step"] for row in again] == [int(promised[1] or 0)]
    assert trace(folder) == trace(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "aborts"])
def test_a_death_ends_the_job_within_seconds(pool: Path, tmp_path: Path, how: str) -> None:
    """No restarts: one rank is killed, or aborts; exit code 1 within 20 s, one paragraph that names it, and no rank is left."""
    settings = {**SETTINGS, "run.duration": "100000 steps", "health.nonfinite": "stop"}
    process = start(2, options(pool, tmp_path, settings), [], LAUNCHER)
    wait_for_step(process, tmp_path, 6)
    ranks = rank_processes(process)
    os.kill(ranks[1], signal.SIGKILL if how == "killed" else signal.SIGABRT)
    since = time.monotonic()
    code, output = finish(process, 60)
    assert time.monotonic() - since < 20
    assert code == 1
    assert output.count("bamboo pretrain: rank ") == 1, output
    assert re.search(rf"process {ranks[1]}\) was {'killed' if how == 'killed' else 'ended by signal 6, SIGABRT'}", output), output
    assert "the job ends: no restarts were asked for" in output
    assert not [pid for pid in ranks if Path(f"/proc/{pid}").exists()]
