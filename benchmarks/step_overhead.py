"""Our training loop against the barest possible loop of the same timm model on the same in-memory batches.

python benchmarks/step_overhead.py
python benchmarks/step_overhead.py --rounds 3      # a quick look, which overwrites the results as well

bamboo    Trainer, PlainEngine, Objective, schedule, Meter and the JSON-lines log, a line every 20 steps
bare      normalise → autocast → cross-entropy → backward → SGD step, and nothing else
"""

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from provenance import best_ratio, provenance, ratios, spread, write_results
from training_loops import SMOOTHING, bare_step, make_batches

from bamboo.datasets.ranks import start_ranks
from bamboo.datasets.stream.batches import Batch
from bamboo.model_zoo.preprocessing import Normalize, Preprocessing
from bamboo.pretrain.average import NoAverage
from bamboo.pretrain.engines.plain import PlainEngine
from bamboo.pretrain.guards.health import Health
from bamboo.pretrain.log import JsonLines
from bamboo.pretrain.meter import Meter
from bamboo.pretrain.objective import Objective
from bamboo.pretrain.optimizer import create_optimizer
from bamboo.pretrain.schedule import create_schedule
from bamboo.pretrain.settings.duration import Lengths
from bamboo.pretrain.settings.health import HealthSettings
from bamboo.pretrain.settings.pretrain import ObjectiveSettings, OptimizerSettings
from bamboo.pretrain.stopping.preemption import Vote
from bamboo.pretrain.stopping.signals import StopSignals
from bamboo.pretrain.trainer import Cadence, Trainer

MODELS: dict[str, dict[str, Any]] = {"resnet18": {}, "vit_tiny_patch16_224": {"img_size": 64}}
SIZE, BATCH, CLASSES, LOG_EVERY = 64, 64, 100, 20
LR, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 5e-5
TARGET = 1.03

NOTES = f"""
{CLASSES} classes, {SIZE} px, batches of {BATCH} uint8 images in memory, bf16 autocast, channels-last, SGD with Nesterov momentum, label
smoothing, one thread. The two loops take turns step by step in one process; CPU time is user and system time of that process, and
ours is all that happens between one batch handed over and the next asked for. A round is {LOG_EVERY} steps, with one line logged; ratios
are taken within a round and given as median (least – greatest) of {{rounds}} rounds after one of warm-up, and once more between the
best steps of both loops, which other work on the machine disturbs least, but which leave out the logging.

- *bamboo*: `Trainer`, `PlainEngine`, `Objective`, schedule, gradient norm, `Meter`, stream fingerprint, and the JSON lines.
- *bare*: normalise, forward, cross-entropy, backward, `SGD.step`, `zero_grad`; it knows neither its loss nor its speed.

Target: at most {TARGET} × bare.
"""


def make_model(name: str) -> torch.nn.Module:
    """Returns the timm model, the same weights every time."""
    torch.manual_seed(0)
    model: torch.nn.Module = timm.create_model(name, num_classes=CLASSES, **MODELS[name])
    return model.to(memory_format=torch.channels_last).train()


def make_trainer(name: str, steps: int, folder: Path) -> Trainer:
    """Returns bamboo's trainer, as a run on one CPU rank without evaluation or checkpoints has it."""
    model, ranks, lengths = make_model(name), start_ranks("cpu"), Lengths(50_000, BATCH, total_steps=steps)
    settings = OptimizerSettings(name="sgd", lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, schedule="cosine")
    optimizer = create_optimizer(model, settings)
    objective = Objective(ObjectiveSettings(label_smoothing=SMOOTHING), seed=0)
    return Trainer(
        engine=PlainEngine(model, optimizer, ranks, precision="bf16", clip_norm=None),
        objective=lambda step: objective,
        normalize=Normalize(Preprocessing(image_size=SIZE)),
        schedule=create_schedule(optimizer, settings, lengths),
        average=NoAverage(),
        ranks=ranks,
        logger=JsonLines(folder),
        meter=Meter(BATCH, lambda step: 1.0, 1.0),
        cadence=Cadence(steps, LOG_EVERY, (), 0),
        seed=0,
        global_batch_size=BATCH,
        accumulate=1,
        evaluate=_nothing,
        save=_nothing,
        vote=Vote(StopSignals(), ranks),
        health=Health(HealthSettings(), ranks),
    )


def _nothing(*_: int) -> None:
    pass


def make_bare_step(name: str) -> Callable[[Batch], None]:
    """Returns one step of the bare loop."""
    model = make_model(name)
    optimizer = torch.optim.SGD(model.parameters(), LR, MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True)
    return bare_step(model, optimizer, torch.device("cpu"), Preprocessing(image_size=SIZE))


class Turns:
    """Batches for the trainer, with a bare step before each: what passes between two of them is the trainer's."""

    def __init__(self, batches: list[Batch], bare_step: Callable[[Batch], None]) -> None:
        self._batches, self._bare_step = batches, bare_step
        self.ours_s: list[float] = []
        self.bare_s: list[float] = []

    def __iter__(self) -> Iterator[Batch]:
        for batch in itertools.cycle(self._batches):
            before = time.process_time()
            self._bare_step(batch)
            after = time.process_time()
            self.bare_s.append(after - before)
            yield batch
            self.ours_s.append(time.process_time() - after)


def measure(name: str, rounds: int, folder: Path) -> dict[str, list[float]]:
    """Returns loop → CPU seconds of each step, without the first round's."""
    steps = (rounds + 1) * LOG_EVERY + 1  # the first round warms up; the last step is never asked to end
    turns = Turns(make_batches(BATCH, SIZE, torch.device("cpu"), CLASSES), make_bare_step(name))
    make_trainer(name, steps, folder).train(iter(turns))
    return {"bamboo": turns.ours_s[LOG_EVERY : steps - 1], "bare": turns.bare_s[LOG_EVERY : steps - 1]}


def _sums(used: list[float]) -> list[float]:
    return [sum(used[start : start + LOG_EVERY]) for start in range(0, len(used), LOG_EVERY)]


def main() -> None:
    """Measures, prints the table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = provenance(["torch", "timm", "numpy"])
    table = [["model", "loop", "ms per step", "bamboo's ratio", "of best steps", "target"]]
    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS:
            measured[name] = seconds = measure(name, options.rounds, Path(folder))
            by_round = {loop: _sums(used) for loop, used in seconds.items()}
            medians = {loop: f"{spread([1000 * value for value in used]).median:.1f}" for loop, used in seconds.items()}
            ratio = [str(ratios(by_round["bamboo"], by_round["bare"])), f"{best_ratio(seconds['bamboo'], seconds['bare']):.3f}"]
            table.append([name, "bamboo", medians["bamboo"], *ratio, f"≤ {TARGET}"])
            table.append([name, "bare", medians["bare"], "1", "1", ""])
    notes = NOTES.format(rounds=options.rounds)
    write_results("step_overhead", "Training step: CPU time against a bare loop", made, table, notes, {"unit": "CPU seconds", **measured})


if __name__ == "__main__":
    sys.exit(main())
