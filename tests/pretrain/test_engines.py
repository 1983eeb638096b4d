"""Engines against one another: the same losses, the same state, and any one goes on where any other stopped, in the middle of an epoch."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from bamboo.cli.main import main
from bamboo.model_zoo.export import read_weights
from bamboo.pretrain.checkpoints.checkpoint import CheckpointFolder, read_checkpoint
from bamboo.pretrain.log import read_log
from tests.doc_blocks import offer_block, read_block
from tests.pretrain.launch import ENVIRONMENT, options

ENGINES: dict[str, dict[str, str]] = {
    "DDP": {},
    "FSDP2": {"engine.kind": "fsdp"},
    **{f"ZeRO-{stage}": {"engine.kind": "deepspeed", "engine.zero_stage": str(stage)} for stage in range(4)},
}
MODELS: dict[str, dict[str, str]] = {"ViT": {}, "ResNet": {"model.name": "test_resnet", "model.args": "{}"}}
SETTINGS = {
    "run.checkpoint_every": "1 steps",
    "run.keep_checkpoints": "9",
    "data.val": "null",  # an evaluation and its picture take as long as all the steps of such a run
    "run.global_batch_size": "24",
    "run.ema_decay": "0.9",
    "run.accumulate": "2",
    "optimizer.clip_norm": "1.0",
}
# Largest relative difference of a step's loss from DistributedDataParallel's: sums over ranks in another order, and what grows of it.
PRECISIONS = ("fp32", "bf16")
TOLERANCE = {"fp32": dict.fromkeys(ENGINES, 2e-6), "bf16": dict.fromkeys(ENGINES, 2e-2)}

DOC = "engines.md"

Job = dict[str, Any]


def job(pool: Path, folder: Path, *settings: Mapping[str, str], source: Path | None = None, step: int = 0) -> Job:
    """Returns a job of `tests.pretrain.relay`."""
    chosen = {name: value for some in (SETTINGS, *settings) for name, value in some.items()}
    return {"arguments": options(pool, folder, chosen), "folder": str(folder), "source": str(source) if source else "", "step": step}


def relay(tmp_path: Path, jobs: list[Job], num_ranks: int = 2, timeout_s: float = 240) -> str:
    """Runs jobs one after another in one set of ranks (0: without torchrun); returns what was printed."""
    file = tmp_path / f"jobs{len(list(tmp_path.glob('jobs*.json')))}.json"
    file.write_text(json.dumps(jobs))
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks), "-m"] if num_ranks else []
    command = [sys.executable, "-m", *torchrun, "tests.pretrain.relay", str(file)]
    done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def losses(folder: Path) -> dict[int, float]:
    """Returns the loss of every step."""
    return {row["step"]: row["loss"] for row in read_log(folder, "train")}


def streams(folder: Path) -> list[str]:
    """Returns the fingerprint of what every step saw."""
    return [row["stream"] for row in read_log(folder, "train")]


def distance(folder: Path, reference: Path, after: int = 0) -> float:
    """Returns the largest relative difference of a loss after some step."""
    ours, theirs = losses(folder), losses(reference)
    assert ours.keys() == theirs.keys()
    return max(abs(ours[step] - loss) / loss for step, loss in theirs.items() if step > after)


def check_export(folder: Path) -> None:
    """Fails unless the newest checkpoint, converted, is the export: the same files, and the average's weights in them."""
    newest = CheckpointFolder(folder, keep=9).newest()
    assert newest is not None
    assert main(["zoo", "convert", str(newest), str(folder / "converted")]) == 0
    for name in ("model.safetensors", "model.json"):
        assert (folder / "converted" / name).read_bytes() == (folder / "export" / name).read_bytes(), name
    average = read_checkpoint(newest).average
    exported = read_weights(folder / "export" / "model.safetensors")
    assert average is not None
    assert exported.keys() == average.keys()
    assert all(torch.equal(exported[name], tensor.whole()) for name, tensor in average.items())


def test_a_vit_is_handed_through_all_engines(pool: Path, tmp_path: Path) -> None:
    """DDP → FSDP2 → ZeRO-0 … ZeRO-3, a step each, in float32: DDP's losses of a whole run; each takes up the state bit for bit."""
    duration = {"run.duration": "6 steps"}
    jobs = [job(pool, tmp_path / "DDP", duration)]
    for number, (before, after) in enumerate(itertools.pairwise(ENGINES)):
        jobs.append(job(pool, tmp_path / after, duration, ENGINES[after], source=tmp_path / before, step=number + 1))
    output = relay(tmp_path, jobs)
    assert "Warning" not in output
    for name in ENGINES:
        assert streams(tmp_path / name) == streams(tmp_path / "DDP")
        assert distance(tmp_path / name, tmp_path / "DDP") <= TOLERANCE["fp32"][name]
        check_export(tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize("model", list(MODELS))
@pytest.mark.parametrize("precision", PRECISIONS)
def test_loss_curves_agree(pool: Path, tmp_path: Path, model: str, precision: str) -> None:
    """Every engine by itself, 20 steps from the same seed: DDP's losses within the tolerance stated for it; export equals checkpoint."""
    settings = {**MODELS[model], "run.duration": "20 steps", "run.precision": precision, "run.checkpoint_every": "10 steps"}
    relay(tmp_path, [job(pool, tmp_path / name, settings, engine) for name, engine in ENGINES.items()])
    apart = {name: distance(tmp_path / name, tmp_path / "DDP") for name in ENGINES}
    for name in ENGINES:
        assert streams(tmp_path / name) == streams(tmp_path / "DDP")
        assert apart[name] <= TOLERANCE[precision][name], name
        check_export(tmp_path / name)
    offer_block(DOC, f"curves {model} {precision}", table(f"{model}, {precision}", {"largest difference": apart}))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU wants a compiler")
def test_compiled_engines_agree(pool: Path, tmp_path: Path) -> None:
    """model.compile under DDP, FSDP2 and ZeRO-1, with accumulation and averages: DDP's losses without it, and the same names saved."""
    settings = {"run.duration": "3 steps", "run.checkpoint_every": "3 steps"}
    compiled = {name: {**ENGINES[name], "model.compile": "true"} for name in ("DDP", "FSDP2", "ZeRO-1")}
    jobs = [job(pool, tmp_path / name, settings, engine) for name, engine in {"eager": {}, **compiled}.items()]
    relay(tmp_path, jobs, timeout_s=500)
    for name in compiled:
        assert streams(tmp_path / name) == streams(tmp_path / "eager")
        assert distance(tmp_path / name, tmp_path / "eager") <= TOLERANCE["fp32"]["DDP"], name
        check_export(tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize("model", list(MODELS))
def test_every_engine_hands_over_to_every_other(pool: Path, tmp_path: Path, model: str) -> None:
    """All 36 pairs, in mid-epoch, two steps each: the losses of DDP's whole run, and every state taken up bit for bit."""
    settings = {**MODELS[model], "run.duration": "4 steps"}
    jobs = [job(pool, tmp_path / name, settings, engine) for name, engine in ENGINES.items()]
    for before, after in itertools.product(ENGINES, ENGINES):
        jobs.append(job(pool, tmp_path / f"{before} {after}", settings, ENGINES[after], source=tmp_path / before, step=2))
    relay(tmp_path, jobs, timeout_s=500)
    apart = {pair: distance(tmp_path / " ".join(pair), tmp_path / "DDP", after=2) for pair in itertools.product(ENGINES, ENGINES)}
    assert not {pair: value for pair, value in apart.items() if value > TOLERANCE["fp32"][pair[1]]}
    rows = {before: {after: apart[before, after] for after in ENGINES} for before in ENGINES}
    offer_block(DOC, f"hand-over {model}", table("from \\ to", rows))


@pytest.mark.slow
def test_engines_hand_over_at_other_numbers_of_ranks(pool: Path, tmp_path: Path) -> None:
    """DDP on 2 ranks → ZeRO-3 on 3 → FSDP2 on 1 → ZeRO-2 on 2 → ZeRO-1 on 1 → FSDP2 on 3: the same states, and DDP's losses."""
    duration = {"run.duration": "8 steps"}
    route = [("DDP", 2), ("ZeRO-3", 3), ("FSDP2", 0), ("ZeRO-2", 2), ("ZeRO-1", 0), ("FSDP2", 3)]
    folders = [tmp_path / f"{number} {name}" for number, (name, _) in enumerate(route)]
    for number, (name, num_ranks) in enumerate(route):
        source = folders[number - 1] if number else None
        relay(tmp_path, [job(pool, folders[number], duration, ENGINES[name], source=source, step=number)], num_ranks)
    for folder in folders:
        assert streams(folder) == streams(folders[0])
        assert distance(folder, folders[0]) <= 2e-4, folder.name  # norms of other shares of a batch, as between numbers of DDP's ranks


def test_the_doc_shows_all_pairs_within_the_tolerance() -> None:
    """The tables of docs/engines.md, which the slow tests write, against the engines and the tolerance stated for each."""
    for model in MODELS:
        rows = shown(f"hand-over {model}")
        assert list(rows) == list(ENGINES)
        for precision in PRECISIONS:
            (curves,) = shown(f"curves {model} {precision}").values()
            assert all(curves[name] <= TOLERANCE[precision][name] for name in ENGINES)
        assert all(row[after] <= TOLERANCE["fp32"][after] for row in rows.values() for after in ENGINES)


def shown(block: str) -> dict[str, dict[str, float]]:
    """Returns the rows of one of the doc's tables: name → engine → distance."""
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in read_block(DOC, block).splitlines())
    assert header[1:] == list(ENGINES)
    return {name: dict(zip(ENGINES, map(float, cells), strict=True)) for name, *cells in rows}


def table(corner: str, rows: Mapping[str, Mapping[str, float]]) -> str:
    """Returns a table of distances, one column per engine."""
    lines = [f"| {corner} | {' | '.join(ENGINES)} |", "|" + " --- |" * (len(ENGINES) + 1)]
    return "\n".join(lines + [f"| {name} | " + " | ".join(f"{row[engine]:.1e}" for engine in ENGINES) + " |" for name, row in rows.items()])
