"""A run that is asked to stop: it loses no step wherever it is, says so, ends with exit code 75, and goes on as if nothing had happened."""

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from bamboo.cli.errors import EXIT_RESUMABLE
from bamboo.cli.main import main
from bamboo.pretrain.log import read_log
from bamboo.pretrain.stopping.marker import FINISHED, MARKER_NAME
from bamboo.pretrain.stopping.preemption import Vote
from tests.faults.test_kill import trace
from tests.pretrain.launch import finish, options, rank_processes, start, train, wait_for_step

SHORT = {
    "model.name": "test_resnet",  # its batch norms keep statistics that a step given up must not touch
    "model.args": "{}",
    "run.duration": "6 steps",
    "run.accumulate": "3",
    "run.eval_every": "2 steps",
    "run.eval_batch_size": "16",
    "run.checkpoint_every": "4 steps",
    "run.ema_decay": "0.9",
}
LONG = {"run.checkpoint_every": "1000 steps", "run.duration": "40 steps"}
PATIENT = ("--shutdown-timeout", "60")


def marker(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / MARKER_NAME).read_bytes())
    return found


def scores(folder: Path) -> list[tuple[Any, ...]]:
    return [(row["step"], row["top1"], row["loss"]) for row in read_log(folder, "eval")]


class Boundaries:
    """Counts the boundaries of a run in this process, and sends it a signal at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.places: list[str] = []
        self.at = -1
        monkeypatch.setattr(Vote, "check", self._check(Vote.check))

    def _check(self, check: Any) -> Any:
        def counted(vote: Vote, place: str = "training") -> None:
            if len(self.places) == self.at:
                os.kill(os.getpid(), signal.SIGUSR1)
                deadline = time.monotonic() + 10
                while not vote._signals.number and time.monotonic() < deadline:
                    time.sleep(0.001)
            self.places.append(place)
            check(vote, place)

        return counted


# inside the second step, and inside the first evaluation; then the start, every kind of edge, and the evaluation after the last step
@pytest.mark.parametrize("stops", [(5, 7), pytest.param((0, 2, 3, 4, 6, 8, 18, 24, 26), marks=pytest.mark.slow)])
def test_a_stop_at_a_boundary(pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: tuple[int, ...]) -> None:
    """SIGUSR1 at a boundary of a run that accumulates and evaluates: 75, then steps, scores and weights of the run without a stop."""
    boundaries = Boundaries(monkeypatch)
    whole = tmp_path / "whole"
    assert main(["pretrain", *options(pool, whole, SHORT)]) == 0
    places = list(boundaries.places)
    assert len(places) == 6 * 3 + 3 * 3  # three parts a step; 37 images in batches of 16, after every other step
    for at in stops:
        folder = tmp_path / str(at)
        boundaries.places, boundaries.at = [], at
        assert main(["pretrain", *options(pool, folder, SHORT)]) == EXIT_RESUMABLE
        boundaries.at = -1
        assert marker(folder)["step"] == len(trace(folder)), f"boundary {at}, {places[at]}: what was done is saved"
        assert main(["pretrain", *options(pool, folder, SHORT)]) == 0
        assert trace(folder) == trace(whole), f"boundary {at}, {places[at]}"
        assert scores(folder) == scores(whole), f"boundary {at}, {places[at]}: an evaluation is made up for"
        weights = "export/model.safetensors"
        assert (folder / weights).read_bytes() == (whole / weights).read_bytes(), f"boundary {at}, {places[at]}"
        assert marker(folder)["reason"] == FINISHED


def test_a_stop_between_log_lines(pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after 3 of 6 steps with a line every 6: the stretches before and after have a line each, and their means add up."""
    boundaries = Boundaries(monkeypatch)
    settings = {"run.duration": "6 steps", "run.log_every": "6 steps"}
    assert main(["pretrain", *options(pool, tmp_path / "whole", settings)]) == 0
    boundaries.places, boundaries.at = [], 3
    assert main(["pretrain", *options(pool, tmp_path / "run", settings)]) == EXIT_RESUMABLE
    boundaries.at = -1
    assert main(["pretrain", *options(pool, tmp_path / "run", settings)]) == 0
    (whole,), (first, second) = read_log(tmp_path / "whole", "train"), read_log(tmp_path / "run", "train")
    assert (first["step"], second["step"]) == (3, 6)
    assert first["grad_norm"] is None
    assert (first["loss"] + second["loss"]) / 2 == pytest.approx(whole["loss"], rel=1e-6)
    assert (int(first["stream"], 16) + int(second["stream"], 16)) % 2**64 == int(whole["stream"], 16)


@pytest.fixture(scope="module")
def uninterrupted(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    train(pool, folder, 2, **{name.replace(".", "__"): value for name, value in LONG.items()})
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("to", "during"), [("launcher", "accumulation"), ("one rank", "steps"), ("one rank", "checkpoints")])
def test_two_ranks_stop_together(pool: Path, tmp_path: Path, uninterrupted: Path, to: str, during: str) -> None:
    """SIGUSR1 to the launcher or to one rank, which torchrun may restart: every rank ends with 75 at the same step, and nothing is lost.

    While it accumulates, 6 of 7 boundaries lie inside a step; with a checkpoint at every step, most of the time goes into writing.
    """
    extra = {"steps": {}, "accumulation": {"run.accumulate": "6"}, "checkpoints": {"run.checkpoint_every": "1 steps"}}[during]
    arguments = options(pool, tmp_path, {**LONG, **extra})
    process = start(2, arguments, [*PATIENT, "--max-restarts", "1"], "bamboo.pretrain.launch")
    wait_for_step(process, tmp_path, random.randint(3, 12))
    os.kill(process.pid if to == "launcher" else rank_processes(process)[1], signal.SIGUSR1)
    code, output = finish(process)
    assert code == EXIT_RESUMABLE, output
    step = marker(tmp_path)["step"]
    assert trace(tmp_path)[-1][0] == step < 40
    assert output.count(f"stopped on SIGUSR1 after step {step}") == 2, output
    if to == "one rank":
        assert output.count("stopped on an earlier signal") == 2, "restarted, they must not go on"
    code, output = finish(start(2, arguments))
    assert code == 0, output
    assert [row["step"] for row in read_log(tmp_path, "start")][-1] == step
    compared = slice(None) if during != "accumulation" else slice(0, 2)
    assert [row[compared] for row in trace(tmp_path)] == [row[compared] for row in trace(uninterrupted)]


@pytest.mark.slow
def test_a_second_signal_ends_at_once(pool: Path, tmp_path: Path) -> None:
    """A run whose peer is stopped (SIGSTOP) never reaches a boundary: a second signal ends the rank all the same, and it says so."""
    process = start(2, options(pool, tmp_path, LONG))
    wait_for_step(process, tmp_path, 3)
    frozen, alive = rank_processes(process)
    os.kill(frozen, signal.SIGSTOP)
    os.kill(alive, signal.SIGTERM)
    time.sleep(5.5)
    os.kill(alive, signal.SIGTERM)
    deadline = time.monotonic() + 10
    while alive in rank_processes(process) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(frozen, signal.SIGKILL)
    code, output = finish(process)
    assert code == 1
    assert "a second signal, SIGTERM: ended at once" in output
    assert not (tmp_path / MARKER_NAME).exists()


@pytest.mark.slow
def test_torchrun_restarts_after_a_rank_is_killed(pool: Path, tmp_path: Path, uninterrupted: Path) -> None:
    """SIGKILL to a rank at a random step under `--max-restarts 2`: torchrun starts both again, and they equal the uninterrupted run."""
    settings = {**LONG, "run.checkpoint_every": "5 steps"}
    process = start(2, options(pool, tmp_path, settings), ["--max-restarts", "2"])
    wait_for_step(process, tmp_path, random.randint(6, 25))
    killed = time.time()
    os.kill(random.choice(rank_processes(process)), signal.SIGKILL)
    code, output = finish(process)
    assert code == 0, output
    starts = [row for row in read_log(tmp_path, "start") if row["time"] > killed]
    assert [row["step"] % 5 for row in starts] == [0]
    assert starts[0]["step"] > 0
    assert trace(tmp_path) == trace(uninterrupted)
