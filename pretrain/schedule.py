"""The learning rate as a function of the step alone, so that resuming needs no state.

Letters: t step, counted from 0; b peak rate.
"""

import bisect
import dataclasses
import math

import torch

from .settings.duration import Lengths
from .settings.optimizer import OptimizerSettings


@dataclasses.dataclass(frozen=True)
class Course:
    """The course of the learning rate in steps. It runs from step 0 on: the warm-up replaces its beginning and does not shift it.

    Linear warm-up: r + t / `warmup` · (b - r), where r is the rate at its first step. Geometric: r · `rate` ^ ⌊t / `every`⌋.
    cosine: m + (b - m) · (1 + cos(π t / `total`)) / 2 with the least rate m. step: b · `decay_rate` ^ (stairs passed).
    But for the geometric warm-up and the given points timm's schedulers', bit for bit.
    """

    settings: OptimizerSettings
    total: int
    warmup: int
    warmup_every: int
    decay_every: int
    decay_at: tuple[int, ...]
    """Rising; empty: a stair every `decay_every` steps."""

    def rate(self, t: float, base: float) -> float:
        """Returns the learning rate at step t; between steps where the batch size has changed."""
        settings = self.settings
        if t < self.warmup:
            if settings.warmup_rate is not None:
                return settings.warmup_lr * float(settings.warmup_rate ** (t // self.warmup_every))
            return settings.warmup_lr + t * ((base - settings.warmup_lr) / self.warmup)
        if settings.schedule == "cosine":
            return settings.min_lr + 0.5 * (base - settings.min_lr) * (1 + math.cos(math.pi * min(t, self.total) / self.total))
        if settings.schedule == "step":
            stairs = bisect.bisect_right(self.decay_at, t) if self.decay_at else t // self.decay_every
            return base * float(settings.decay_rate**stairs)
        return base


class Schedule:
    """Sets the rates of an optimiser's groups; of groups with a factor of their own (layer decay), that many times the course."""

    def __init__(self, optimizer: torch.optim.Optimizer, course: Course) -> None:
        self._optimizer, self._course = optimizer, course
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])

    def step_update(self, step: float) -> None:
        """Sets the learning rates for a step, counted from 0."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._course.rate(step, group["initial_lr"]) * group.get("lr_scale", 1.0)


def create_schedule(optimizer: torch.optim.Optimizer, settings: OptimizerSettings, lengths: Lengths) -> Schedule:
    """Returns the schedule of the settings, in steps."""
    course = Course(
        settings,
        total=max(lengths.total_steps, 1),
        warmup=lengths.steps(settings.warmup),
        warmup_every=max(lengths.steps(settings.warmup_every), 1),
        decay_every=max(lengths.steps(settings.decay_every), 1),
        decay_at=tuple(sorted(lengths.steps(point) for point in settings.decay_at)),
    )
    return Schedule(optimizer, course)
