"""The training loop: step, log, evaluate, save, in that order; everything else is handed in."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

from ..datasets.counters import key
from ..datasets.plan.slices import rank_slice
from ..datasets.ranks import Ranks
from ..datasets.stream.batches import Batch
from ..model_zoo.preprocessing import Normalize
from .average import Average
from .engines.engine import Engine
from .guards.health import Health
from .guards.nonfinite import Buffers
from .log import Logger
from .meter import Meter
from .objective import Objective
from .profiling.operations import (
    AVERAGE,
    BACKWARD,
    DATA,
    EVALUATION,
    FORWARD,
    LOGGING,
    OPTIMIZER,
    SAVING,
    TRANSFER,
    VOTE,
    Operations,
    Unwatched,
)
from .schedule import Schedule
from .stopping.marker import Stopped
from .stopping.preemption import StopRequested, Vote
from .tally import Tally

_DROPOUT = 5  # what the key is for; 1 to 4 are the data's and the objective's


@dataclasses.dataclass(frozen=True)
class Cadence:
    """When what happens, in steps; each also happens after the last step (0: only then)."""

    total: int
    log: int
    evaluate: tuple[int, ...]
    """Of each evaluator."""
    save: int

    def due(self, every: int, step: int) -> bool:
        """Whether something done every so many steps is due after step number `step`, counted from 1."""
        return step == self.total or (every > 0 and step % every == 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trainer:
    """One rank's training run."""

    engine: Engine
    objective: Callable[[int], Objective]
    """The objective of a step."""
    unit: int = 1
    """Images that must stay together in one forward pass."""
    normalize: Normalize
    schedule: Schedule
    average: Average
    ranks: Ranks
    logger: Logger
    meter: Meter
    cadence: Cadence
    seed: int
    global_batch_size: int
    offset: int = 0
    """Samples consumed before step 0, had the global batch always been what it is now; not 0 once it has changed."""
    schedule_step: Callable[[int], float] = float
    """Where on the schedule a step is."""
    accumulate: int
    evaluate: Callable[[int], None]
    save: Callable[[int, int], None]
    """Takes the steps done and the samples consumed."""
    vote: Vote
    health: Health
    recomputing: Callable[[], AbstractContextManager[None]] = nullcontext
    """Entered around each backward pass, which may compute activations a second time."""
    operations: Operations = dataclasses.field(default_factory=Unwatched)
    """Is told what this rank is doing."""

    def train(self, batches: Iterator[Batch], start: int = 0) -> None:
        """Trains from step `start` to the end on `batches`, the first of which is batch number `start`.

        Raises:
            Stopped: early, on request; the state is saved, and the steps that no line has told of yet have a line of their own.
            DataError: when loss, gradient or weights are not finite (as `Health` says); nothing of that is saved.
        """
        with self.health.collector:
            self._train(batches, start)

    def _train(self, batches: Iterator[Batch], start: int) -> None:
        self.engine.module.train()
        tally = Tally(self.ranks)
        self.meter.restart()
        done = saved = start
        try:
            for step in range(start, self.cadence.total):
                self.operations.step(step)
                with self.operations.during(VOTE):
                    self.vote.check()
                self._take(batches, step, tally)
                done = step + 1
                if self.cadence.due(self.cadence.log, done):
                    with self.operations.during(LOGGING):
                        self._log(tally, done)
                if any(self.cadence.due(every, done) for every in self.cadence.evaluate):
                    with self.operations.during(EVALUATION):
                        self.evaluate(done)
                        self.health.collector.now()
                    self.meter.restart()
                if self.cadence.due(self.cadence.save, done):
                    self._save(tally, done)
                    saved = done
                    self.meter.restart()
                self.health.collector.step(done)
        except StopRequested as request:
            if tally.num_steps:
                self._log(tally, done)
            if done > saved:
                self._save(tally, done)
            raise Stopped(done, self._samples(done), request.number) from None

    def _take(self, batches: Iterator[Batch], step: int, tally: Tally) -> None:
        asked = time.perf_counter()
        with self.operations.during(DATA):
            batch = next(batches)
        self.meter.count(step, time.perf_counter() - asked)
        self.schedule.step_update(self.schedule_step(step))
        tally.count(batch, *self.step(batch, step))

    def step(self, batch: Batch, step: int) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Makes one optimiser step; returns this rank's share of the mean loss, and before a log line the gradient norm, on the device.

        The third is whether the step was made, bool[], where it could be left out: then weights, averages, buffers and optimiser state
        are as if it had not been.

        The loss is Σ over images / global batch, and the engine averages gradients over ranks, hence the factor of the world size:
        slices of unequal length weigh as they should.
        """
        torch.manual_seed(int(key(self.seed, _DROPOUT, step, self.ranks.rank) >> np.uint64(1)))
        share = torch.zeros((), device=self.ranks.device)
        policy = self.health.nonfinite
        buffers = Buffers(self.engine.module) if self.accumulate > 1 or policy.skips else None
        for part in range(self.accumulate):
            if part and buffers is not None:
                self._go_on(buffers)
            rows = rank_slice(len(batch.labels), part, self.accumulate, self.unit)
            loss = self._part_loss(batch, slice(rows.start, rows.stop), step)
            with self.operations.during(BACKWARD), self.recomputing():
                self.engine.backward(loss * policy.factor(loss, self.ranks.world_size), last=part == self.accumulate - 1)
            share += loss.detach()
        with self.operations.during(OPTIMIZER):
            gradient_norm = self.engine.step(measure=self.cadence.due(self.cadence.log, step + 1), skip=policy.skips)
            made = policy.made(gradient_norm)
            if made is not None and buffers is not None:
                buffers.restore_unless(made)
        with self.operations.during(AVERAGE):
            self.average.update(made)
        return share, gradient_norm, made

    def _go_on(self, buffers: Buffers) -> None:
        """Passes a boundary inside a step; a step that ends there has not been, and leaves the buffers as it found them."""
        try:
            self.vote.check()
        except StopRequested:
            buffers.restore()
            raise

    def _part_loss(self, batch: Batch, rows: slice, step: int) -> torch.Tensor:
        """Returns Σ loss over some rows of the batch, divided by the global batch."""
        with self.operations.during(TRANSFER):
            images = batch.images[rows].to(self.ranks.device, non_blocking=True)
            labels = batch.labels[rows].to(self.ranks.device, non_blocking=True)
            weights = None if batch.weights is None else batch.weights[rows].to(self.ranks.device, non_blocking=True)
        with self.operations.during(FORWARD):
            objective = self.objective(step)
            inputs, targets = objective.mix(self.normalize(images), labels, step)
            return objective.loss_sum(self.engine.forward(inputs), targets, weights) / self.global_batch_size

    def _save(self, tally: Tally, done: int) -> None:
        with self.operations.during(SAVING):
            self.health.require_finite(self.engine, self.average, tally, done)
            self.save(done, self._samples(done))

    def _samples(self, step: int) -> int:
        return self.offset + step * self.global_batch_size

    def _log(self, tally: Tally, step: int) -> None:
        """Writes the line of a stretch; the only place where the host waits for the device."""
        figures, more = self.health.figures(tally, step)
        pace = self.meter.read()
        self.logger.write(
            {
                "kind": "train",
                "step": step,
                "samples": self._samples(step),
                "loss": _finite(figures.loss),
                "lr": max(group["lr"] for group in self.engine.optimizer.param_groups),
                "grad_norm": _finite(figures.gradient_norm),
                **dataclasses.asdict(pace),
                "stream": figures.stream,
                **more,
            }
        )
        warnings = self.health.warnings(figures)
        if warnings:
            self.logger.write({"kind": "warning", "step": step, **warnings})


def _finite(value: float | None) -> float | None:
    """Returns what JSON can hold: of a step that was left out there is no figure."""
    return value if value is not None and math.isfinite(value) else None
