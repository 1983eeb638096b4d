"""A NaN on one rank: the step is as if it had not been, on every engine, or the run ends by name and the last good checkpoint stays."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from bamboo.datasets.ranks import start_ranks
from bamboo.pretrain.checkpoints.checkpoint import CheckpointFolder
from bamboo.pretrain.log import read_log
from tests.pretrain.launch import ENVIRONMENT, options
from tests.pretrain.poisoned import ending
from tests.pretrain.relay import differences, state
from tests.pretrain.test_engines import ENGINES, MODELS

SETTINGS = {
    "run.duration": "8 steps",
    "run.checkpoint_every": "2 steps",
    "run.keep_checkpoints": "9",
    "run.log_every": "2 steps",
    "run.ema_decay": "0.9",
    "run.accumulate": "2",
    "data.val": "null",
    "health.nonfinite": "skip",
}
FAULTS = {1: "loss", 3: "value", 4: "gradient", 8: "loss"}
FUSED = {"optimizer.args": "{fused: true}"}
OFFLOADED = {f"ZeRO-{stage} offloaded": {**ENGINES[f"ZeRO-{stage}"], "engine.offload": "true"} for stage in (1, 2, 3)}

Job = dict[str, Any]


def job(pool: Path, folder: Path, faults: dict[int, str], settings: dict[str, str], rank: int = 1) -> Job:
    """Returns a job of `tests.pretrain.poisoned`."""
    arguments = options(pool, folder, {**SETTINGS, **settings})
    named = {str(step): how for step, how in faults.items()}
    return {"arguments": arguments, "folder": str(folder), "source": "", "step": 0, "faults": named, "rank": rank}


def endings(tmp_path: Path, jobs: list[Job], num_ranks: int = 2, timeout_s: float = 240) -> list[list[str]]:
    """Runs jobs one after another in one set of ranks (1: this process); returns how each ended, on every rank."""
    if num_ranks == 1:
        return [[ending(job, start_ranks("cpu"))] for job in jobs]
    file = tmp_path / "jobs.json"
    file.write_text(json.dumps(jobs))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    command += ["-m", "tests.pretrain.poisoned", str(file)]
    done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [[(tmp_path / f"ending-{number}-{rank}.txt").read_text() for rank in range(num_ranks)] for number in range(len(jobs))]


def newest(folder: Path) -> Path:
    path = CheckpointFolder(folder, keep=9).newest()
    assert path is not None
    return path


def rows(folder: Path) -> list[tuple[Any, ...]]:
    return [tuple(row.get(name) for name in ("step", "loss", "grad_norm", "stream", "lr", "skipped")) for row in read_log(folder, "train")]


def check_equal(ours: Path, theirs: Path) -> None:
    """Fails unless two runs have logged the same and saved the same state, bit for bit."""
    assert rows(ours) == rows(theirs)
    one, other = state(newest(ours)), state(newest(theirs))
    assert one["model"]
    assert one["optimizer"]["state"]
    assert differences(one, other) == []


def all_finite(folder: Path) -> bool:
    """Whether all tensors of all checkpoints are finite."""
    kept = [state(path) for path in (folder / "checkpoints").glob("step-*")]
    assert kept
    trees = [tensor for one in kept for tree in (one["model"], one["average"] or {}) for tensor in tree.values()]
    return all(bool(torch.isfinite(tensor).all()) for tensor in trees)


def check_skips(pool: Path, tmp_path: Path, engines: Mapping[str, dict[str, str]], settings: dict[str, str], num_ranks: int) -> None:
    """Fails unless runs of these engines with steps that are not finite equal runs that never had those steps."""
    jobs = []
    for name, engine in engines.items():
        for kind, faults in (("faulty", FAULTS), ("absent", dict.fromkeys(FAULTS, "absent"))):
            jobs.append(job(pool, tmp_path / f"{name} {kind}", faults, {**settings, **engine}, rank=num_ranks - 1))
    assert endings(tmp_path, jobs, num_ranks) == [["done"] * num_ranks] * len(jobs)
    for name in engines:
        check_equal(tmp_path / f"{name} faulty", tmp_path / f"{name} absent")
        assert [row["skipped"] for row in read_log(tmp_path / f"{name} faulty", "train")] == [1, 2, 0, 1]


@pytest.mark.parametrize("settings", [MODELS["ResNet"], FUSED], ids=["host", "fused"])
def test_one_process_skips(pool: Path, tmp_path: Path, settings: dict[str, str]) -> None:
    """One process: skipped steps against a run that never made them: figures, weights, averages, moments and batch norms bit for bit."""
    check_skips(pool, tmp_path, {"plain": {}}, settings, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "clip"), [("ResNet", {}), ("ViT", {"optimizer.clip_norm": "1.0"})])
def test_every_engine_skips(pool: Path, tmp_path: Path, model: str, clip: dict[str, str]) -> None:
    """NaN on rank 1 of 2 only: every engine's skipped steps equal those of a run that never made them, bit for bit."""
    check_skips(pool, tmp_path, ENGINES, {**MODELS[model], **clip}, 2)


@pytest.mark.slow
def test_offloaded_engines_skip(pool: Path, tmp_path: Path) -> None:
    """The same with the optimiser's state on the CPU, where DeepSpeed keeps gradients, and looks at them, in places of their own."""
    check_skips(pool, tmp_path, OFFLOADED, MODELS["ResNet"], 2)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_every_engine_stops(pool: Path, tmp_path: Path, how: str) -> None:
    """NaN on rank 1 in step 3, saved after every other: each engine ends on both ranks, by name, and checkpoint 2 stays the newest."""
    stop = {**MODELS["ResNet"], "health.nonfinite": "stop", "run.log_every": "4 steps", "optimizer.clip_norm": "1.0"}
    jobs = [job(pool, tmp_path / name, {3: how}, {**stop, **engine}) for name, engine in ENGINES.items()]
    for name, ended in zip(ENGINES, endings(tmp_path, jobs), strict=True):
        assert ended[0] == ended[1], name
        assert ended[0].startswith("DataError: step 3: " if how == "loss" else "DataError: step "), ended[0]
        assert "health.nonfinite=skip" in ended[0]
        if how == "loss":
            assert "not finite first on rank 1 of 2, samples " in ended[0]
        assert newest(tmp_path / name).name == "step-00000002"
        assert all_finite(tmp_path / name)


@pytest.mark.parametrize("settings", [{"run.log_every": "1 steps"}, {"run.log_every": "8 steps"}], ids=["line", "save"])
def test_one_process_stops(pool: Path, tmp_path: Path, settings: dict[str, str]) -> None:
    """NaN in step 3: the run ends at the next line or save, naming step, rank and that batch's samples; checkpoint 2 stays the newest."""
    stop = {"health.nonfinite": "stop", "run.accumulate": "1", **settings}
    jobs = [job(pool, tmp_path / "nan", {3: "loss"}, stop, rank=0), job(pool, tmp_path / "none", {}, stop)]
    (ended,), (done,) = endings(tmp_path, jobs, 1)
    assert done == "done"
    assert ended.startswith("DataError: step 3: ")
    assert "loss nan" in ended
    assert "not finite first on rank 0 of 1, samples " in ended
    report = json.loads((tmp_path / "nan" / "nonfinite.json").read_bytes())
    assert report["step"] == 3
    assert len(report["ranks"][0]["samples"]) == 12
    assert newest(tmp_path / "nan").name == "step-00000002"
    assert all_finite(tmp_path / "nan")


def test_too_many_in_a_row(pool: Path, tmp_path: Path) -> None:
    """Three skipped steps in a row end a run with max_nonfinite=3; two, one and two do not."""
    most = {"health.max_nonfinite": "3", "run.duration": "8 steps"}
    cases = (("row", (2, 3, 4)), ("apart", (1, 2, 4, 6, 7)))
    jobs = [job(pool, tmp_path / name, dict.fromkeys(steps, "loss"), most, 0) for name, steps in cases]
    (row,), (apart,) = endings(tmp_path, jobs, 1)
    assert row.startswith("DataError: step ")
    assert "3 steps in a row" in row
    assert apart == "done"
