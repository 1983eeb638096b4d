"""Pretraining jobs on a real SLURM cluster on the loopback: two nodes, one rank each."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bamboo.cli.main import main
from bamboo.pretrain.log import read_log
from bamboo.slurm.array import Array, is_running, wait
from bamboo.slurm.job import outcome_of
from tests.faults.test_kill import trace
from tests.pretrain.launch import ENVIRONMENT, options, train
from tests.slurm.cluster import loopback_cluster

RUN = {"run.checkpoint_every": "1000 steps", "run.duration": "80 steps"}
TWO_NODES = ["--nodes", "2", "--cpus", "1", "--check", "false", "--env", "{GLOO_SOCKET_IFNAME: lo, OMP_NUM_THREADS: '1'}"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cluster that all tests of this file submit to."""
    with loopback_cluster(tmp_path_factory.mktemp("slurm") / "cluster") as config, pytest.MonkeyPatch.context() as patch:
        for name, value in {**ENVIRONMENT, "SLURM_CONF": str(config)}.items():
            patch.setenv(name, value)
        yield
        for job in subprocess.run(["squeue", "--noheader", "--format=%A"], capture_output=True, text=True, check=True).stdout.split():
            subprocess.run(["scancel", "--full", "--signal=KILL", job], check=False)  # of a test that failed


def until(holds: Callable[[], bool], what: Callable[[], str], limit_s: float = 400) -> None:
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)


def submitted(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out.split("submitted job ")[1].split(":")[0]


def rank_processes(folder: Path) -> list[int]:
    """Returns the ranks of a run: processes of its command that are not torchrun, nor the shell around it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(folder).encode() in words and b"bamboo.pretrain" in words and b"bamboo.pretrain.launch" not in words:
            found.append(int(entry.name))
    return found


def time_line(folder: Path, log: str) -> str:
    """Returns the batch script's lines and the run's own rows by time: the table of docs/slurm.md (BAMBOO_TIME_LINE=FILE writes it)."""
    events = []
    for kind in ("start", "train", "stop"):
        rows = [row for row in read_log(folder, kind) if kind != "train" or row["step"] in (1, 80)]
        events += [(time.strftime("%H:%M:%S", time.localtime(row["time"])), f"run: {kind}, step {row['step']}") for row in rows]
    for line in log.splitlines():
        if re.match(r"\d\d:\d\d:\d\d ", line):
            events.append((line[:8], "script: " + line[9:].partition(", rendezvous")[0]))
    return "".join(f"{moment}  {what}\n" for moment, what in sorted(events, key=lambda event: event[0]))


@pytest.mark.slow
def test_a_job_stopped_before_its_time_limit_resumes(pool: Path, tmp_path: Path, cluster: None, capsys: pytest.CaptureFixture[str]) -> None:
    """`bamboo slurm submit` on two nodes, two minutes, --signal: saved, requeued, resumed; equal to the run without SLURM.

    The ranks are frozen until SLURM sends its signal, as so few steps would be over by then.
    """
    folder, logs = tmp_path / "run", tmp_path / "logs"
    how = [*TWO_NODES, "--time", "2", "--notice_s", "60", "--max_idle", "5", "--logs", str(logs)]
    assert main(["slurm", "submit", *how, "--", *options(pool, folder, RUN)]) == 0
    job = submitted(capsys)
    log = logs / f"{job}.log"

    def told() -> str:
        return log.read_text() if log.exists() else "no log yet"

    until(lambda: (folder / "log.jsonl").exists() and len(read_log(folder, "train")) >= 10, told)
    ranks = rank_processes(folder)
    for rank in ranks:
        os.kill(rank, signal.SIGSTOP)
    assert len(ranks) == 2
    until(lambda: "USR1: the ranks are to save" in told(), told)
    for rank in ranks:
        os.kill(rank, signal.SIGCONT)
    until(lambda: (logs / job / "outcome").exists(), told)
    assert outcome_of(logs, job).code == 0, told()
    stops = [row["step"] for row in read_log(folder, "stop")]
    assert {row["signal"] for row in read_log(folder, "stop")} == {"SIGUSR1"}
    assert 10 <= stops[0] < 80
    assert [row["step"] for row in read_log(folder, "start")] == [0, *stops]
    assert f"stopped after step {stops[0]}; back into the queue" in told()
    assert len(list((logs / job).glob("attempt-[01]/node-[01]/*/attempt_0/0/stderr.log"))) == 4, "a log per rank and attempt"
    whole = tmp_path / "whole"
    train(pool, whole, 2, **{name.replace(".", "__"): value for name, value in RUN.items()})
    assert trace(folder) == trace(whole)
    written = os.environ.get("BAMBOO_TIME_LINE")
    if written:
        Path(written).write_text(time_line(folder, told()))


@pytest.mark.slow
def test_a_failing_job_is_reported_with_the_reason(pool: Path, tmp_path: Path, cluster: None, capsys: pytest.CaptureFixture[str]) -> None:
    """A setting that only the ranks can refuse: `--wait` ends with the job's code and the ranks' own words, and nothing is requeued."""
    logs = tmp_path / "logs"
    arguments = options(pool, tmp_path / "run", {"model.name": "no_such_model"})
    how = [*TWO_NODES, "--max_restarts", "0", "--time", "20", "--logs", str(logs), "--wait"]
    assert main(["slurm", "submit", *how, "--", *arguments]) == 1
    output = capsys.readouterr().out
    assert "failed with exit code 1: bamboo pretrain:" in output
    assert "no_such_model" in output
    assert not list(logs.glob("*/attempt-1"))


@pytest.mark.slow
def test_a_cancelled_job_stays_cancelled(pool: Path, tmp_path: Path, cluster: None, capsys: pytest.CaptureFixture[str]) -> None:
    """scancel: the ranks save, and the job does not come back."""
    folder, logs = tmp_path / "run", tmp_path / "logs"
    how = [*TWO_NODES, "--time", "20", "--logs", str(logs)]
    assert main(["slurm", "submit", *how, "--", *options(pool, folder, {**RUN, "run.duration": "100000 steps"})]) == 0
    job = submitted(capsys)
    log = logs / f"{job}.log"
    until(lambda: (folder / "log.jsonl").exists() and len(read_log(folder, "train")) >= 5, lambda: log.read_text())
    subprocess.run(["scancel", job], check=True)
    wait(Array(job), poll_s=0.2)
    time.sleep(2)
    assert not is_running(Array(job))
    assert read_log(folder, "stop")[0]["signal"] == "SIGTERM", log.read_text()
    assert "back into the queue" not in log.read_text()
    assert "JobState=CANCELLED" in outcome_of(logs, job).reason or "decides what comes of it" in log.read_text()
