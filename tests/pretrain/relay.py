"""Runs several jobs in one set of ranks, one after another: `torchrun … -m tests.pretrain.relay JOBS.json`.

A job is a run's arguments, and before it, if it says so, the copy of another run's folder as it was after some step. A run that takes
over a checkpoint must hold its very state: what it would save at once is compared with what it read, bit for bit.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from bamboo.cli.arguments import parse
from bamboo.datasets.ranks import Ranks, start_ranks
from bamboo.model_zoo.tensor_files import Stored
from bamboo.pretrain.checkpoints.checkpoint import CheckpointFolder, read_checkpoint
from bamboo.pretrain.checkpoints.meeting import Meeting
from bamboo.pretrain.checkpoints.snapshot import take_snapshot
from bamboo.pretrain.engines.choice import check_engine
from bamboo.pretrain.pool import open_pool
from bamboo.pretrain.run import Run
from bamboo.pretrain.settings.pretrain import PretrainSettings
from bamboo.pretrain.stopping.signals import StopSignals


def main(file: Path) -> None:
    """Runs all jobs."""
    ranks = start_ranks("cpu")
    for job in json.loads(file.read_text()):
        if job["source"] and ranks.is_first:
            hand_over(Path(job["source"]), Path(job["folder"]), job["step"])
        ranks.barrier()
        execute(job, ranks)
        ranks.barrier()
    ranks.close()


def execute(job: dict[str, Any], ranks: Ranks) -> None:
    """Runs one job to its end."""
    config = parse(PretrainSettings, job["arguments"], prog="relay", doc="")
    check_engine(config)
    run = Run(config, open_pool(config), (), ranks, StopSignals())
    if job["source"]:
        compare(run, Path(job["folder"]) / "checkpoints" / f"step-{job['step']:08d}", ranks)
    run.execute()


def compare(run: Run, path: Path, ranks: Ranks) -> None:
    """Fails unless a run that has taken up the checkpoint at `path` would save the same."""
    position = run._resume()
    again = CheckpointFolder(path.parents[1] / "again", keep=1)
    saved = again.save(take_snapshot(position, run._engine, run._average, ranks, {"pinned": {}}), Meeting(ranks))
    if ranks.is_first:
        assert not list(differences(state(saved), state(path))), list(differences(state(saved), state(path)))[:3]


def state(path: Path) -> dict[str, Any]:
    """Returns weights, average and optimiser state of a checkpoint, whole."""
    read = read_checkpoint(path)
    return {name: whole(getattr(read, name)) for name in ("position", "model", "average", "optimizer")}


def whole(tree: Any) -> Any:
    """Returns a tree with its tensors read."""
    if isinstance(tree, dict):
        return {key: whole(value) for key, value in tree.items()}
    return tree.whole() if isinstance(tree, Stored) else tree


def differences(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Returns the places where two trees of plain values and tensors differ, tensors in any bit."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        lone = [f"{path}.{key}" for key in ours.keys() ^ theirs.keys()]
        return lone + [place for key in ours.keys() & theirs.keys() for place in differences(ours[key], theirs[key], f"{path}.{key}")]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return [place for number, pair in enumerate(zip(ours, theirs, strict=True)) for place in differences(*pair, f"{path}.{number}")]
    if torch.is_tensor(ours) and torch.is_tensor(theirs):
        return [] if ours.dtype == theirs.dtype and torch.equal(ours, theirs) else [path]
    return [] if type(ours) is type(theirs) and ours == theirs else [f"{path}: {ours!r}, {theirs!r}"]


def hand_over(source: Path, target: Path, step: int) -> None:
    """Copies a run folder as it was when the checkpoint after `step` was the newest."""
    shutil.copytree(source, target)
    for path in (target / "checkpoints").glob("step-*"):
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    shutil.rmtree(target / "export")
    rows = [line for line in (target / "log.jsonl").read_text().splitlines() if json.loads(line)["step"] <= step]
    (target / "log.jsonl").write_text("".join(row + "\n" for row in rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
