"""Optimiser and schedule, from timm's factories."""

from typing import Protocol

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2

from ..cli.errors import UserError
from .duration import Lengths
from .optimizer_config import OptimizerSettings


class Schedule(Protocol):
    """A learning rate as a function of the step alone, so that resuming needs no state."""

    def step_update(self, num_updates: float) -> None:
        """Sets the learning rates for step `num_updates`, counted from 0."""


def create_optimizer(model: torch.nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Returns timm's optimiser; biases and norms are not decayed.

    Raises:
        UserError: when timm knows no such optimiser or refuses its arguments.
    """
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            model,
            opt=settings.name,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
            layer_decay=settings.layer_decay,
            **settings.args,
        )
    except (ValueError, TypeError, AssertionError) as error:
        raise UserError(f"optimizer.name={settings.name}: {error}") from None
    return optimizer


def create_schedule(optimizer: torch.optim.Optimizer, settings: OptimizerSettings, lengths: Lengths) -> Schedule:
    """Returns timm's schedule counted in steps."""
    constant = settings.schedule == "constant"
    schedule: Schedule
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched="step" if constant else settings.schedule,
        num_epochs=max(lengths.total_steps, 1),
        decay_epochs=max(lengths.steps(settings.decay_every), 1),
        decay_rate=1.0 if constant else settings.decay_rate,
        min_lr=settings.min_lr,
        warmup_lr=settings.warmup_lr,
        warmup_epochs=lengths.steps(settings.warmup),
        step_on_epochs=False,
        updates_per_epoch=1,
    )
    return schedule
