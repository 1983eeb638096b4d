"""`bamboo slurm status`: folders as jobs leave them, against the states and reasons that are to be told."""

from pathlib import Path

import pytest

from bamboo.cli.main import main
from bamboo.slurm.status import Standing, exit_code, standings
from tests.slurm.node import put_programs

FINISHED = '{"step": 80, "reason": "finished"}'
STOPPED = '{"step": 12, "reason": "SIGUSR1"}'


def leave(state: Path, **files: str) -> None:
    state.mkdir(parents=True)
    (state / "attempt-0").mkdir()
    for name, text in files.items():
        (state / name.replace("_", ".")).write_text(text)


def test_jobs_of_a_folder_of_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One job in each state; of one that ended without a word SLURM is asked, by a program in its place."""
    leave(tmp_path / "3", ended_json=FINISHED, outcome="0\nfinished\n")
    leave(tmp_path / "4", ended_json=STOPPED)
    leave(tmp_path / "5", ended_json=STOPPED, outcome="75\nstopped after step 12; submit the same command to go on\n")
    leave(tmp_path / "6", outcome="137\nfailed with exit code 137: Killed\n")
    leave(tmp_path / "10")
    (tmp_path / "11.sh").touch()
    (tmp_path / "11.log").touch()
    monkeypatch.setenv("PATH", put_programs(tmp_path, {"scontrol": "echo JobState=TIMEOUT ExitCode=0:15"}))
    lost = "its script ended without a word; SLURM says: JobState=TIMEOUT ExitCode=0:15"
    assert list(standings(tmp_path, {"4": "RUNNING", "11": "PENDING"})) == [
        Standing("3", "finished", 80, 1, ""),
        Standing("4", "running", 12, 1, ""),
        Standing("5", "stopped", 12, 1, "stopped after step 12; submit the same command to go on"),
        Standing("6", "failed", None, 1, "failed with exit code 137: Killed"),
        Standing("10", "lost", None, 1, lost),
        Standing("11", "pending", None, 0, ""),
    ]


def test_cells_of_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The table by hand, without SLURM on the machine: steps from the runs' own logs, of which one is cut in the midst of a row."""
    runs, logs = tmp_path / "runs", tmp_path / "runs" / "slurm"
    logs.mkdir(parents=True)
    (logs / "sweep.json").write_text(f'{{"runs": "{runs}", "cells": ["lr=0.1", "lr=0.01", "lr=1"]}}')
    leave(logs / "lr=0.1", job="7_0", ended_json=FINISHED)
    leave(logs / "lr=0.01", job="7_1")
    (runs / "lr=0.01").mkdir()
    (runs / "lr=0.01" / "log.jsonl").write_text('{"kind": "train", "step": 1400}\n{"kind": "train", "st')
    monkeypatch.setenv("PATH", "")
    for folder in (runs, logs):
        assert main(["slurm", "status", str(folder)]) == 0
        found = capsys.readouterr()
        assert found.err == "what is in the queue is not known: there is no squeue on this machine\n"
        assert found.out.splitlines() == [
            "cell     state      step  attempts  reason",
            "lr=0.1   finished                1",
            "lr=0.01  unknown   1,400         1  job 7_1: queued, running, or ended without a word",
            "lr=1     new                     0",
            "3 cells: 1 finished, 1 unknown, 1 new",
        ]


def test_folders_without_jobs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that is not there is the user's mistake; an empty one is none."""
    assert main(["slurm", "status", str(tmp_path / "nowhere")]) == 2
    assert "no such folder; give the --logs of a job, or the --runs of a sweep" in capsys.readouterr().err
    assert main(["slurm", "status", str(tmp_path)]) == 0
    assert "no job has left anything here" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("states", "code"), [(["finished"], 0), (["finished", "stopped"], 75), (["stopped", "failed"], 1), (["lost"], 1), (["new"], 1)]
)
def test_exit_code(states: list[str], code: int) -> None:
    """0 where all are done, 75 where the same command goes on, else 1."""
    assert exit_code([Standing("x", state, None, 0, "") for state in states]) == code
