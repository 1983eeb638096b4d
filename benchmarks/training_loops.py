"""The loops that train one model on the same images: bamboo's trainer, timm's benchmark step, and the barest one."""

import contextlib
import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from timm.optim import create_optimizer_v2
from torch.nn.functional import cross_entropy

from bamboo.cli.config import build
from bamboo.datasets.ranks import Ranks
from bamboo.datasets.stream.batches import Batch
from bamboo.model_zoo.backbone import create_model
from bamboo.model_zoo.preprocessing import Normalize, Preprocessing
from bamboo.pretrain.average import NoAverage
from bamboo.pretrain.batches import RunBatches
from bamboo.pretrain.engines.choice import open_engine
from bamboo.pretrain.guards.health import Health
from bamboo.pretrain.log import JsonLines, read_log
from bamboo.pretrain.meter import Meter
from bamboo.pretrain.objective import Objective
from bamboo.pretrain.optimizer import create_optimizer
from bamboo.pretrain.phases import plan_phases
from bamboo.pretrain.pool import open_pool
from bamboo.pretrain.sampling import open_plan
from bamboo.pretrain.schedule import create_schedule
from bamboo.pretrain.settings.pretrain import PretrainSettings
from bamboo.pretrain.stopping.preemption import Vote
from bamboo.pretrain.stopping.signals import StopSignals
from bamboo.pretrain.trainer import Cadence, Trainer

CLASSES, SMOOTHING = 1000, 0.1
_ENDLESS = 1_000_000


@dataclasses.dataclass(frozen=True)
class Case:
    """What is trained: a model at an image size, in batches, with an optimiser."""

    model: str
    args: dict[str, Any]
    image_size: int
    batch_size: int
    optimizer: dict[str, Any]
    """optimizer.name, lr, weight_decay, momentum and args, as in bamboo's settings."""
    compiled: bool

    def make_model(self, device: torch.device) -> torch.nn.Module:
        """Returns timm's model, the same weights every time."""
        torch.manual_seed(0)
        model = create_model(self.model, num_classes=CLASSES, **self.args)
        return model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]  # torch's stub lacks it


class Loop(Protocol):
    """Trains in rounds."""

    lead: int
    """Steps to make before a round that is measured: what a loader has made ahead is used up by then."""

    def round(self, num_steps: int) -> None:
        """Makes so many steps."""


class BambooLoop:
    """Bamboo's trainer, built from settings as a run builds it; a round ends with a log line, as a stretch of a run does."""

    def __init__(self, case: Case, ranks: Ranks, folder: Path, shards: Path, *, workers: int, from_loader: bool, flops: float, peak: float):
        """`flops` of an image in training and the `peak` FLOP/s of the device are for the log's MFU."""
        self._folder, self._done = folder, 0
        config = settings(case, ranks, folder, shards, workers)
        pool = open_pool(config)
        model = case.make_model(ranks.device)
        engine = open_engine(config, model, functools.partial(create_optimizer, settings=config.optimizer), ranks)
        self._batches: Iterator[Batch] = itertools.cycle(make_batches(case.batch_size, case.image_size, ranks.device))
        self.lead = 0
        if from_loader:
            plan = open_plan(config, pool, ranks, 0)
            phases = plan_phases(config, pool.lengths)
            self._batches = RunBatches(config, pool, ranks, 1).training(plan, phases, range(_ENDLESS), 0)
            self.lead = workers * config.data.prefetch + 2 if workers else 0
        objective = Objective(config.objective, 0)
        self._trainer = Trainer(
            engine=engine,
            objective=lambda _: objective,
            unit=1,
            normalize=Normalize(Preprocessing(image_size=case.image_size)).to(ranks.device),
            schedule=create_schedule(engine.optimizer, config.optimizer, pool.lengths),
            average=NoAverage(),
            ranks=ranks,
            logger=JsonLines(folder),
            meter=Meter(case.batch_size, lambda _: flops, peak),
            cadence=Cadence(0, 0, (), 0),
            seed=0,
            global_batch_size=case.batch_size,
            accumulate=1,
            evaluate=_nothing,
            save=_nothing,
            vote=Vote(StopSignals(), ranks),
            health=Health(config.health, ranks, folder),
        )

    def round(self, num_steps: int) -> None:
        """Makes so many steps, and logs the last; the training does not end there, which would have its state looked over and saved."""
        start, self._done = self._done, self._done + num_steps
        trainer = dataclasses.replace(self._trainer, cadence=Cadence(_ENDLESS, self._done, (), 0))
        with contextlib.suppress(StopIteration):
            trainer.train(itertools.islice(self._batches, num_steps), start)

    def data_waits(self, num_rounds: int) -> list[float]:
        """Returns the share of the time spent waiting for batches in each of the last rounds, the newest first."""
        every = 2 if self.lead else 1  # a lead has a line of its own, and batches that were ready
        return [row["data_wait"] for row in read_log(self._folder, "train")[::-every][:num_rounds]]


class TimmLoop:
    """What timm's own `benchmark.py --bench train --amp --channels-last` times; the script is in its repository, not in its wheel.

    A fixed batch of normal floats on the device, new random targets each step, `CrossEntropyLoss`, timm's optimiser at its defaults
    and a wait for the device after every step.
    """

    lead = 0

    def __init__(self, case: Case, ranks: Ranks) -> None:
        model = case.make_model(ranks.device)
        self._model: Any = torch.compile(model) if case.compiled else model
        self._optimizer = create_optimizer_v2(model, opt="sgd", lr=1e-4)
        shape = (case.batch_size, 3, case.image_size, case.image_size)
        self._images = torch.randn(shape, device=ranks.device).contiguous(memory_format=torch.channels_last)
        self._device = ranks.device

    def round(self, num_steps: int) -> None:
        """Makes so many steps."""
        for _ in range(num_steps):
            self._optimizer.zero_grad()
            with torch.autocast(self._device.type, torch.bfloat16):
                output = self._model(self._images)
                target = torch.randint(CLASSES, (len(self._images),), device=self._device)
                loss = cross_entropy(output, target)
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own signature
            self._optimizer.step()
            wait_for(self._device)


class BareLoop:
    """normalise → autocast → cross-entropy → backward → step, with bamboo's optimiser and nothing else: the limit."""

    lead = 0

    def __init__(self, case: Case, ranks: Ranks) -> None:
        model = case.make_model(ranks.device)
        wanted = {name: value for name, value in case.optimizer.items() if name not in ("name", "args")}
        optimizer = create_optimizer_v2(model, opt=case.optimizer["name"], **wanted, **case.optimizer["args"])
        runner: Any = torch.compile(model) if case.compiled else model
        self._step = bare_step(runner, optimizer, ranks.device, Preprocessing(image_size=case.image_size))
        self._batches = itertools.cycle(make_batches(case.batch_size, case.image_size, ranks.device))

    def round(self, num_steps: int) -> None:
        """Makes so many steps."""
        for batch in itertools.islice(self._batches, num_steps):
            self._step(batch)


def bare_step(model: Any, optimizer: torch.optim.Optimizer, device: torch.device, how: Preprocessing) -> Callable[[Batch], None]:
    """Returns one step of the barest loop."""
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (how.mean, how.std))
    scale, shift = 1 / (255 * std), -mean / std

    def step(batch: Batch) -> None:
        images = batch.images.permute(0, 3, 1, 2).to(torch.float32).mul_(scale).add_(shift)
        with torch.autocast(device.type, torch.bfloat16):
            loss = cross_entropy(model(images), batch.labels, label_smoothing=SMOOTHING)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own signature
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def make_batches(batch_size: int, size: int, device: torch.device, classes: int = CLASSES, num_batches: int = 4) -> list[Batch]:
    """Returns random batches on the device."""
    random = np.random.default_rng(0)
    made = []
    for number in range(num_batches):
        ids = torch.arange(number * batch_size, (number + 1) * batch_size)
        images = torch.from_numpy(random.integers(0, 256, (batch_size, size, size, 3), dtype=np.uint8)).to(device)
        labels = torch.from_numpy(random.integers(0, classes, batch_size)).to(device)
        made.append(Batch(images, labels, ids, torch.ones(batch_size, dtype=torch.bool), ids))
    return made


def settings(case: Case, ranks: Ranks, folder: Path, shards: Path, workers: int) -> PretrainSettings:
    """Returns the settings of a run of this case."""
    tree = {
        "model": {"name": case.model, "args": case.args, "compile": case.compiled},
        "data": {"train": [str(shards)], "image_size": case.image_size, "workers": workers},
        "objective": {"label_smoothing": SMOOTHING},
        "optimizer": {**case.optimizer, "schedule": "constant"},
        "health": {"gc_every": 0},  # each round would begin with a collection, a run's training does once
        "run": {
            "folder": str(folder),
            "duration": f"{_ENDLESS} steps",
            "global_batch_size": case.batch_size,
            "device": ranks.device.type,
        },
    }
    return build(PretrainSettings, tree, "the benchmark")


def wait_for(device: torch.device) -> None:
    """Returns when the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clock(device: torch.device) -> float:
    """Returns seconds: by the wall where a GPU works, which waits for nobody else, and of this process's CPU time elsewhere."""
    wait_for(device)
    return time.perf_counter() if device.type == "cuda" else time.process_time()


def _nothing(*_: int) -> None:
    pass
