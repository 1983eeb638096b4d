"""Pretraining jobs on a real SLURM cluster on the loopback: two nodes, one rank each unless said otherwise."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bamboo.cli.main import main
from bamboo.pretrain.log import read_log
from bamboo.slurm.queue import Array, is_running, queued, wait
from bamboo.slurm.status import outcome_of
from tests.faults.test_kill import trace
from tests.pretrain.launch import options, train
from tests.slurm import time_line

LAST = 80
LAST_OF_SWEEP = 250
RUN = {"run.checkpoint_every": "1000 steps", "run.duration": f"{LAST} steps"}
HOW = ["--cpus", "1", "--check", "false", "--env", "{GLOO_SOCKET_IFNAME: lo, OMP_NUM_THREADS: '1'}"]
TWO_NODES = ["--nodes", "2", *HOW]


@pytest.fixture(scope="module")
def whole(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of the same run on two ranks without SLURM, which nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(pool, folder, 2, **{name.replace(".", "__"): value for name, value in RUN.items()})
    return folder


def until(holds: Callable[[], bool], what: Callable[[], str], limit_s: float = 400) -> None:
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)


def has_trained(folder: Path, steps: int) -> bool:
    return (folder / "log.jsonl").exists() and len(read_log(folder, "train")) >= steps


class Job:
    """A job that trains in a folder of the test, as the command line submits it."""

    def __init__(self, pool: Path, tmp_path: Path, *how: str, **settings: str) -> None:
        self.folder, self.logs = tmp_path / "run", tmp_path / "logs"
        arguments = options(pool, self.folder, {**RUN, **{name.replace("__", "."): value for name, value in settings.items()}})
        assert main(["slurm", "submit", *TWO_NODES, "--logs", str(self.logs), *how, "--", *arguments]) == 0
        self.number = next(path.stem for path in self.logs.glob("*.sh"))
        self.state = self.logs / self.number

    def told(self) -> str:
        log = self.logs / f"{self.number}.log"
        return log.read_text() if log.exists() else "no log yet"

    def reach(self, step: int) -> None:
        until(lambda: has_trained(self.folder, step), self.told)

    def freeze(self) -> list[int]:
        """Stops the ranks where they are, as so few steps would be over before SLURM has done anything; returns them."""
        ranks = rank_processes(self.folder)
        for rank in ranks:
            os.kill(rank, signal.SIGSTOP)
        assert len(ranks) == 2
        return ranks

    def await_end(self) -> None:
        until(lambda: (self.state / "outcome").exists(), self.told)

    def check_resumed(self, whole: Path, name: str) -> None:
        """Asserts that the job was stopped once by that signal, came back, resumed where it stood, and ended as the undisturbed run."""
        assert outcome_of(self.state, self.number).code == 0, self.told()
        stops = read_log(self.folder, "stop")
        assert [row["signal"] for row in stops] == [name], self.told()
        assert 10 <= stops[0]["step"] < LAST
        assert [row["step"] for row in read_log(self.folder, "start")] == [0, stops[0]["step"]]
        assert trace(self.folder) == trace(whole)


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


def processes_on(node: str) -> list[int]:
    """Returns the processes of jobs that SLURM has started on a node."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"SLURMD_NODENAME={node}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()[1])


@pytest.mark.slow
def test_a_job_stopped_before_its_time_limit_resumes(pool: Path, tmp_path: Path, whole: Path, cluster: Path) -> None:
    """`bamboo slurm submit` on two nodes, two minutes, --signal: saved, requeued, resumed; equal to the run without SLURM."""
    job = Job(pool, tmp_path, "--time", "2", "--notice_s", "60", "--max_idle", "5")
    job.reach(10)
    ranks = job.freeze()
    until(lambda: "USR1: the ranks are to save" in job.told(), job.told)
    for rank in ranks:
        os.kill(rank, signal.SIGCONT)
    job.await_end()
    job.check_resumed(whole, "SIGUSR1")
    assert len(list(job.state.glob("attempt-[01]/node-[01]/*/attempt_0/0/stderr.log"))) == 4, "a log per rank and attempt"
    told = time_line.time_line(job.folder, job.told(), LAST)
    assert time_line.refuse(told) == ""
    time_line.offer_doc(told)


@pytest.mark.slow
def test_a_job_that_gives_way_to_an_urgent_one_resumes(pool: Path, tmp_path: Path, whole: Path, cluster: Path) -> None:
    """Pre-emption by a partition of higher priority (PreemptMode=REQUEUE, GraceTime): saved on SIGTERM, requeued, resumed, equal."""
    job = Job(pool, tmp_path, "--time", "20")
    job.reach(10)
    job.freeze()  # SLURM's SIGCONT, which comes before its SIGTERM, ends that
    urgent = ["sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--exclusive", f"--output={tmp_path}/urgent.log"]
    subprocess.run([*urgent, f"--wrap=squeue --noheader --format=%T --jobs={job.number}"], check=True, capture_output=True)
    job.await_end()
    job.check_resumed(whole, "SIGTERM")
    assert (tmp_path / "urgent.log").read_text() == "PENDING\n", "the urgent job ran in between"


@pytest.mark.slow
def test_a_job_whose_node_is_lost_resumes(pool: Path, tmp_path: Path, whole: Path, cluster: Path) -> None:
    """All that runs on the second node falls silent, as when its power fails, and the node comes back without its processes.

    SLURM misses it after SlurmdTimeout and requeues the job, which goes on from its last checkpoint; equal to the undisturbed run.
    """
    job = Job(pool, tmp_path, "--time", "20", run__checkpoint_every="7 steps")
    job.reach(10)
    tasks = processes_on("node2")
    steps = {parent for task in tasks if b"slurmstepd" in Path(f"/proc/{(parent := parent_of(task))}/cmdline").read_bytes()}
    daemon = int((cluster.parent / "slurmd-node2.pid").read_text())
    for process in (daemon, *steps, *tasks):
        os.kill(process, signal.SIGSTOP)
    until(lambda: queued()[job.number] == "PENDING", job.told)
    for process in (*steps, *tasks):
        os.kill(process, signal.SIGKILL)
    os.kill(daemon, signal.SIGCONT)
    job.await_end()
    assert outcome_of(job.state, job.number).code == 0, job.told()
    first, second = (row["step"] for row in read_log(job.folder, "start"))
    assert first == 0
    assert second >= 7
    assert second % 7 == 0
    assert trace(job.folder) == trace(whole)


@pytest.mark.slow
def test_a_failing_job_is_reported_with_the_reason(pool: Path, tmp_path: Path, cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A setting that only the ranks can refuse: `--wait` ends with the job's code and the ranks' own words, and nothing is requeued.

    SLURM itself has the job as failed, with the same code.
    """
    logs = tmp_path / "logs"
    arguments = options(pool, tmp_path / "run", {"model.name": "no_such_model"})
    how = [*TWO_NODES, "--max_restarts", "0", "--time", "20", "--logs", str(logs), "--wait"]
    assert main(["slurm", "submit", *how, "--", *arguments]) == 1
    output = capsys.readouterr().out
    assert "failed with exit code 1: bamboo pretrain:" in output
    assert "no_such_model" in output
    assert not list(logs.glob("*/attempt-1"))
    job = next(path.stem for path in logs.glob("*.sh"))
    shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=True).stdout
    assert "JobState=FAILED" in shown
    assert "ExitCode=1:0" in shown


@pytest.mark.slow
def test_a_cancelled_job_stays_cancelled(pool: Path, tmp_path: Path, cluster: Path) -> None:
    """scancel: the ranks save, and the job does not come back."""
    job = Job(pool, tmp_path, "--nodes", "1", "--time", "20", run__duration="100000 steps")
    job.reach(5)
    subprocess.run(["scancel", job.number], check=True)
    wait(Array(job.number), poll_s=0.2)
    time.sleep(2)
    assert not is_running(Array(job.number))
    assert read_log(job.folder, "stop")[0]["signal"] == "SIGTERM", job.told()
    assert "back into the queue" not in job.told()
    assert "JobState=CANCELLED" in outcome_of(job.state, job.number).reason or "decides what comes of it" in job.told()


@pytest.mark.slow
def test_a_sweep_of_which_one_cell_fails(
    pool: Path, tmp_path: Path, cluster: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three cells: one fails with the reason, one is stopped by SIGUSR1 to its script and comes back by itself, one is left alone.

    The one that is stopped is the last, whose job id is the array's: to requeue that would be to requeue all. The same sweep submitted
    meanwhile adds nothing, as all of it is in the queue.
    """
    monkeypatch.chdir(tmp_path)
    Path("sweep.yaml").write_text("- {model.name: no_such_model}\n- {run.seed: 0}\n- {run.seed: 1}\n")
    arguments = options(pool, tmp_path / "unused", {**RUN, "run.duration": f"{LAST_OF_SWEEP} steps"})
    at = arguments.index("--run.folder")
    del arguments[at : at + 2]
    submit = ["slurm", "submit", *HOW, "--time", "20", "--max_restarts", "0", "--sweep", "sweep.yaml", "--runs", "runs", "--", *arguments]
    assert main(submit) == 0
    job = capsys.readouterr().out.split("submitted 3 cells as job ")[1].split(":")[0]
    assert main(submit) == 0
    assert capsys.readouterr().out == "nothing to submit: 0 of 3 cells are finished, 3 in the queue\n"

    def told() -> str:
        return "".join(path.read_text() for path in sorted(Path("runs/slurm").glob("*.log")))

    runs = [Path(f"runs/run.seed={seed}") for seed in (0, 1)]
    until(lambda: has_trained(runs[1], 5), told)
    subprocess.run(["scancel", "--batch", "--signal=USR1", f"{job}_2"], check=True)
    until(lambda: not queued(), told)
    assert main(["slurm", "status", "runs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [row["step"] for row in read_log(runs[0], "start")] == [0], told()
    stops = [row["step"] for row in read_log(runs[1], "stop")]
    assert len(stops) == 1, told()
    assert [row["step"] for row in read_log(runs[1], "start")] == [0, *stops], told()
    for folder in runs:
        assert [row["step"] for row in read_log(folder, "train")] == list(range(1, LAST_OF_SWEEP + 1))
    rows = [line.split(maxsplit=4) for line in lines[1:4]]
    assert rows[0][:3] == ["model.name=no_such_model", "failed", "1"]
    assert "failed with exit code 1: bamboo pretrain:" in lines[1]
    assert rows[1:] == [[f"run.seed={seed}", "finished", str(LAST_OF_SWEEP), attempts] for seed, attempts in ((0, "1"), (1, "2"))]
    assert lines[4] == "3 cells: 1 failed, 2 finished"


@pytest.mark.slow
def test_the_gpus_of_a_node_and_a_rank_for_each(pool: Path, tmp_path: Path, cluster: Path) -> None:
    """--gpus 2 on a node of fake GPUs: SLURM gives the launcher both, and there are two ranks."""
    if "Gres=gpu" not in cluster.read_text():
        pytest.skip("device nodes cannot be made here")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/bash\necho "$SLURMD_NODENAME has GPUs $CUDA_VISIBLE_DEVICES"\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    job = Job(pool, tmp_path, "--nodes", "1", "--gpus", "2", "--time", "20", "--python", str(python), dry_run="true")
    job.await_end()
    assert outcome_of(job.state, job.number).code == 0, job.told()
    assert [line for line in job.told().splitlines() if " has GPUs " in line] == ["node1 has GPUs 0,1"]
    logs = sorted(path.relative_to(job.state / "attempt-0") for path in job.state.glob("attempt-0/node-*/*/attempt_0/*/stdout.log"))
    assert [(path.parts[0], path.parts[-2]) for path in logs] == [("node-0", "0"), ("node-0", "1")]
