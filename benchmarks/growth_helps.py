"""Does growing by information gain help? Real images with planted redundancy, equal samples seen, several seeds.

python benchmarks/growth_helps.py CIFAR RUN --work runs/growth-helps

CIFAR holds CIFAR-10 as `train/CLASS/*.jpg` and `test/CLASS/*.jpg`; RUN is the run folder of the real run (README.md), whose backbone says
what is like what. The same command goes on where it stopped: images, shards, features, growth, snapshots, and then a cell for every arm
and seed, two at a time on one core each: `bamboo pretrain` on the arm's snapshot, and `bamboo probe` of what came out.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from growth_helps_table import CONFIDENCE, METRICS, contrast_lines, found, found_lines, result_table, share
from planted_pool import BASE, COPIES, EXACT, NEAR, PROBE, SAMPLES_PER_SHARD, Truth, plant, read_truth
from provenance import provenance, write_results

from bamboo.datasets.atomic import write_json, write_text
from bamboo.datasets.feature_folder import read_features
from bamboo.datasets.growth.columns import Decision
from bamboo.datasets.growth.snapshot import LATEST_NAME, open_snapshot

CONFIG = Path(__file__).parents[1] / "configs" / "pretrain" / "tiny_imagenet_resnet18.yaml"
MODEL, SIZE, BATCH, LR, SAMPLES = "resnet10t", 32, 128, 0.1, 60_000
SEEDS, JOBS = 5, 2
BUDGET = 5_000
FALSE_SHARE = 0.01
"""Distinct images of the calibration set that lie within the duplicate distance of another."""

Rates = npt.NDArray[np.floating[Any]]


@dataclasses.dataclass(frozen=True)
class Arm:
    """A way of choosing what is seen."""

    name: str
    policy: Mapping[str, str] | None = None
    """Settings of the snapshot's policy; None: the pool as it is."""
    options: tuple[str, ...] = ()
    """Further options of `bamboo pretrain`."""

    @property
    def is_drawn(self) -> bool:
        """Whether the choice itself is drawn, and so differs from seed to seed."""
        return self.name.endswith(", static")

    @property
    def slug(self) -> str:
        """The name as a folder."""
        return self.name.replace(",", "").replace(" ", "-")


COPIES_TOO = {"deduplicate": "false"}
PROPORTIONAL, TWO_PHASE = {"kind": "proportional"}, {"kind": "two-phase"}
STATIC = {"kind": "static", "budget": str(BUDGET)}
ALIKE = STATIC | {"temperature": ".inf"}
ARMS = (
    Arm("random"),
    Arm("deduplicate", {"kind": "uniform"}),
    Arm("gain, proportional", PROPORTIONAL | COPIES_TOO),
    Arm("both, proportional", PROPORTIONAL),
    Arm("gain, two-phase", TWO_PHASE | COPIES_TOO),
    Arm("both, two-phase", TWO_PHASE),
    Arm("random, static", ALIKE | COPIES_TOO),
    Arm("deduplicate, static", ALIKE),
    Arm("gain, static", STATIC | COPIES_TOO),
    Arm("both, static", STATIC),
    Arm("random, classes balanced", options=("--sampling.balance", "1")),
    Arm("one of each"),
)
"""The last two are no policies but yardsticks: one that is told the classes, and one that is told what was planted."""


def bamboo(*words: str | Path) -> None:
    """Runs a verb, quietly; what it said is shown where it fails.

    Raises:
        SystemExit: when it fails.
    """
    command = [sys.executable, "-m", "bamboo.cli", *map(str, words)]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


@dataclasses.dataclass(frozen=True)
class Bench:
    """The work folder of the experiment."""

    cifar: Path
    backbone: Path
    work: Path
    samples: int
    seeds: int

    def shards(self, name: str) -> Path:
        """Returns the shard folder of the pool, the calibration set or the test images."""
        return self.work / "shards" / name

    def prepare(self) -> None:
        """Makes images, shards, features and the recipe, whatever of them is missing."""
        images = self.work / "images"
        plant(self.cifar, images)
        recipe = yaml.safe_load(CONFIG.read_text())
        del recipe["data"]["train"], recipe["data"]["val"]  # an arm names its own
        write_text(self.work / "recipe.yaml", yaml.safe_dump(recipe))
        how = ["--format", "list", "--classes", str(images / "classes.txt"), "--shuffle", "none"]
        size = ["--samples-per-shard", str(SAMPLES_PER_SHARD)]
        for name in ("pool", "calibration"):
            if not (self.shards(name) / "dataset.json").exists():
                bamboo("shards", "pack", images / f"{name}.txt", "--out", self.shards(name), *how, *size)
            bamboo("features", self.backbone, self.shards(name), "--out", self.work / "features" / name)
        if not (self.shards("test") / "dataset.json").exists():
            bamboo("shards", "pack", images / "probe" / "test", "--out", self.shards("test"))

    def features(self, name: str) -> Path:
        """Returns the feature folder of the pool or of the calibration set."""
        (folder,) = (self.work / "features" / name).iterdir()
        return folder

    def threshold(self) -> float:
        """Returns the duplicate distance: the quantile `FALSE_SHARE` of the nearest distances among distinct images."""
        features = read_features(self.features("calibration")).features.astype(np.float32)
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        cosines = features @ features.T
        np.fill_diagonal(cosines, -1)
        return round(float(np.quantile(1 - cosines.max(1), FALSE_SHARE)), 4)

    def snapshot(self, arm: Arm, seed: int) -> Path:
        """Returns the arm's snapshot for a seed, grown where it is missing."""
        assert arm.policy is not None, arm
        link = self.work / "snapshots" / f"{arm.slug}-{seed if arm.is_drawn else 0}"
        if not link.is_symlink():
            arrival = (
                []
                if (self.work / "state" / LATEST_NAME).exists()
                else ["--data", str(self.shards("pool")), "--image", str(self.features("pool"))]
            )
            policy = [word for name, value in arm.policy.items() for word in (f"--policy.{name}", value)]
            seeded = ["--policy.seed", str(seed)] if arm.is_drawn else []
            bamboo("grow", self.work / "state", "--cleaning.duplicate-distance", str(self.threshold()), *arrival, *policy, *seeded)
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(open_snapshot(self.work / "state").folder.resolve())
        return link.resolve()

    def data(self, arm: Arm, seed: int) -> list[str]:
        """Returns the options of `bamboo pretrain` that say what is seen."""
        pool = ["--data.train", str(self.shards("pool"))]
        if arm.policy is not None:
            return ["--data.snapshot", str(self.snapshot(arm, seed))]
        if arm.name == "one of each":
            weights = self.work / "one-of-each.npy"
            np.save(weights, (~read_truth(self.work / "images").is_repeat).astype(np.float32))
            return [*pool, "--sampling.weights", str(weights), "--sampling.weights-are", "probabilities"]
        return [*pool, *arm.options]

    def visits(self, arm: Arm, labels: npt.NDArray[np.int64], truth: Truth) -> Rates:
        """Returns float64[N] expected visits an epoch, mean of two where it has two phases, for seed 0."""
        if arm.policy is not None:
            snapshot = open_snapshot(self.snapshot(arm, 0))
            (folder,) = snapshot.training
            first: Rates = np.load(folder.probabilities).astype(np.float64)
            if folder.second is not None:
                return np.asarray((first + np.load(folder.second)) / 2)
            return np.full(len(first), 0.5) if snapshot.coupled else first
        if arm.name == "one of each":
            return (~truth.is_repeat).astype(np.float64)
        counts = np.bincount(labels)[labels]
        return len(counts) / counts / len(np.unique(labels)) if arm.options else np.ones(len(counts))

    def cell(self, arm: Arm, seed: int, data: Sequence[str]) -> dict[str, Any]:
        """Trains and probes an arm with a seed, where that was not done before, and returns its row."""
        folder = self.work / "cells" / f"{arm.slug}-{seed}"
        row, run = folder / "cell.json", folder / "run"
        if not row.exists():
            started = time.perf_counter()
            bamboo("pretrain", "--config", self.work / "recipe.yaml", *self._training(run, seed), *data)
            kept = ["--cache", str(folder / "features"), "--out", str(folder / "probe")]
            bamboo("probe", run, "--dataset", "folder", "--data-root", self.work / "images" / "probe", "--workers", "0", *kept)
            scores = _last(run / "log.jsonl", "eval")["top1"], _last(folder / "probe" / "results.jsonl")["value"]
            seconds = round(time.perf_counter() - started, 1)
            told = {"arm": arm.name, "seed": seed, **dict(zip(METRICS, scores, strict=True)), "seconds": seconds}
            shutil.rmtree(run / "checkpoints")
            shutil.rmtree(folder / "features")
            write_json(row, told | {"samples": _last(run / "log.jsonl", "train")["samples"]})
        return dict(json.loads(row.read_text()))

    def _training(self, run: Path, seed: int) -> list[str]:
        model = ["--model.name", MODEL, "--data.image-size", str(SIZE), "--data.val", str(self.shards("test")), "--data.workers", "0"]
        optimizer = ["--optimizer.lr", str(LR), "--optimizer.warmup", "5 %"]
        length = ["--run.duration", f"{self.samples} samples", "--run.global-batch-size", str(BATCH), "--run.seed", str(seed)]
        rare = [word for name in ("eval", "checkpoint") for word in (f"--run.{name}-every", "100 %")]
        return [*model, *optimizer, *length, *rare, "--run.folder", str(run), "--run.threads", "1", "--run.device", "cpu"]

    def grid(self) -> list[dict[str, Any]]:
        """Returns the rows of all cells, seed by seed, so that a grid that is cut short is still a fair one."""
        cells = [(arm, seed, self.data(arm, seed)) for seed in range(self.seeds) for arm in ARMS]
        rows = list[dict[str, Any]]()
        pool = concurrent.futures.ThreadPoolExecutor(JOBS)
        try:
            for row in pool.map(self.cell, *zip(*cells, strict=True)):
                rows.append(row)
                sys.stderr.write(f"{len(rows)}/{len(cells)} {json.dumps(row)}\n")
        finally:
            pool.shutdown(cancel_futures=True)  # where one failed, the rest need not begin
        return rows


def _last(path: Path, kind: str | None = None) -> dict[str, Any]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return dict([row for row in rows if kind is None or row["kind"] == kind][-1])


NOTES = f"""
{{pool:,}} images: {BASE:,} different ones of each class of CIFAR-10, and {COPIES:,} copies more in each of six:
{", ".join(EXACT)} byte by byte, {", ".join(NEAR)} encoded anew and mostly shifted, mirrored, lighter or darker; image r of
a class gets a share 1 / r of its copies. They arrive in random order. Features of the real run's backbone ({{backbone}}),
64 pixels. Every arm trains a {MODEL} at {SIZE} pixels on {{samples:,}} samples of its choice (batches of {BATCH}, the real run's recipe
with its rate scaled to the batch), which is {{passes:.1f}} times the pool and {{rounds:.1f}} times its different images; the seed, one of
{{seeds}}, sets weights, order, crops and what a static choice draws. *Top-1* is of the run's own classifier on the 10,000 test images,
the *linear probe* (protocol `standard`) of its frozen backbone, fitted on {PROBE} training images of each class which are not in the
pool. ± is half a {CONFIDENCE:.0%} confidence interval over seeds by Student's t; differences are taken seed by seed.

- *random*: the pool as it is, a permutation every epoch; *static*: {BUDGET:,} images are drawn once and seen again and again.
- *deduplicate*: none that lay within the duplicate distance of an earlier one. The distance is the {FALSE_SHARE:.0%} quantile of the
  distances to the nearest among {{calibration:,}} other images, all different: it has seen neither the pool nor any label.
- *gain*: every epoch drawn anew in proportion to the gain; or in two phases, by gain and then what that left over; or drawn once.
  *both*: the same among those that are no duplicates. But for the distance, and for keeping duplicates, with the default settings.
- *random, classes balanced*: `--sampling.balance 1`, which needs labels; *one of each*: the first appearance of each image, which needs
  to be told what was planted. They are yardsticks.

*Effective distinct images* are (Σ v)² / Σ v² over the different images, v the expected visits an epoch of an image with all its copies.

What growth found:

{{found}}

Comparisons. Arms and comparisons were fixed before any policy was trained, but when the first runs of *random* and the two yardsticks
had been seen. "Not told apart": the interval of the difference holds 0. Intervals cover what the seed changes, not another pool,
backbone or way of planting, and are not widened for their number.

{{contrasts}}
"""


def report(bench: Bench, rows: Sequence[Mapping[str, Any]], made: Mapping[str, Any]) -> None:
    """Prints the table, and writes it with what growth found."""
    truth, labels = read_truth(bench.work / "images"), read_features(bench.features("pool")).labels
    scores = {arm.name: {metric: [row[metric] for row in rows if row["arm"] == arm.name] for metric in METRICS} for arm in ARMS}
    shares = {arm.name: share(bench.visits(arm, labels, truth), truth) for arm in ARMS}
    columns = open_snapshot(bench.snapshot(ARMS[1], 0)).columns(0)
    told = found(columns["decision"] == Decision.DUPLICATE, columns["image_gain"], truth, bench.threshold())
    distinct = int((~truth.is_repeat).sum())
    notes = NOTES.format(
        pool=len(labels),
        backbone=bench.backbone.name,
        samples=rows[0]["samples"],
        passes=rows[0]["samples"] / len(labels),
        rounds=rows[0]["samples"] / distinct,
        seeds=bench.seeds,
        calibration=distinct,
        found="\n".join(found_lines(told)),
        contrasts="\n".join(contrast_lines(scores)),
    )
    rounds = {"cells": list(rows), "found": dataclasses.asdict(told), "shares": {arm: dataclasses.asdict(of) for arm, of in shares.items()}}
    write_results("growth_helps", "Growing by information gain: does it help?", made, result_table(scores, shares), notes, rounds)


def main() -> None:
    """Runs what is missing, prints the tables and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar", type=Path)
    parser.add_argument("backbone", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    options = parser.parse_args()
    made = provenance(["torch", "timm", "numpy", "scipy"])
    bench = Bench(options.cifar, options.backbone, options.work, options.samples, options.seeds)
    bench.prepare()
    rows = bench.grid()
    report(bench, rows, made)


if __name__ == "__main__":
    main()
