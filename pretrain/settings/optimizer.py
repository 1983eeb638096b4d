"""The settings of the optimiser and its schedule: optimizer.*."""

from typing import Annotated, Any, Literal

from pydantic import Field

from ...cli.config import settings
from .data import NonNegative
from .duration import Duration, is_nothing

_WARMUP_LR, _DECAY_EVERY, _DECAY_RATE = 1e-6, "30 %", 0.1


@settings
class OptimizerSettings:
    """Optimiser, from timm's factory, and schedule."""

    name: str = "adamw"
    """timm's name of the optimiser: sgd, adamw, lamb, lion, muon, …"""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate at the given global batch size; it is not rescaled."""
    weight_decay: NonNegative = 0.05
    """Decoupled or L2, as the optimiser has it; biases and norms are exempt."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum, for the optimisers that have one."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the optimiser, e.g. {betas: [0.9, 0.95]}."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Factor of the learning rate per layer, from the head down; none: off."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Greatest gradient norm; none: no clipping."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """Course of the learning rate after the warm-up."""
    warmup: Duration = "0 epochs"
    """Warm-up from warmup_lr, linear unless warmup_rate is given; the schedule runs from the start of the run all the same."""
    warmup_lr: NonNegative = _WARMUP_LR
    """Learning rate at the first step of the warm-up."""
    warmup_rate: Annotated[float, Field(gt=1)] | None = None
    """Warm-up in stairs instead, each so many times as high as the one before; none: linear."""
    warmup_every: Duration = "1 epochs"
    """warmup_rate: length of a stair."""
    min_lr: NonNegative = 0.0
    """Learning rate at the end of a cosine."""
    decay_every: Duration = _DECAY_EVERY
    """schedule=step: length of a stair."""
    decay_rate: Annotated[float, Field(gt=0, le=1)] = _DECAY_RATE
    """schedule=step: factor per stair."""
    decay_at: tuple[Duration, ...] = ()
    """schedule=step: where the stairs begin, such as [30 epochs, 60 epochs, 80 epochs], in place of decay_every."""

    def problems(self) -> list[str]:
        """Returns what does not fit together."""
        found = self._unused()
        if self.decay_at and self.schedule != "step":
            found.append(f"decay_at={list(self.decay_at)}: schedule={self.schedule} does not use it; give schedule=step, or leave it out")
        if self.decay_at and self.decay_every != _DECAY_EVERY:
            found.append(f"decay_at={list(self.decay_at)}: takes the place of decay_every={self.decay_every}; give one of them")
        if self.warmup_every != "1 epochs" and self.warmup_rate is None:
            found.append(f"warmup_every={self.warmup_every}: a linear warm-up has no stairs; give warmup_rate, or leave it out")
        return found

    def _unused(self) -> list[str]:
        """Returns a problem for each setting that is given and that no part of the course reads."""
        found = []
        if self.schedule != "step":
            why = f"schedule={self.schedule} has no stairs; give schedule=step, or leave it out"
            found += [f"decay_every={self.decay_every}: {why}"] if self.decay_every != _DECAY_EVERY else []
            found += [f"decay_rate={self.decay_rate:g}: {why}"] if self.decay_rate != _DECAY_RATE else []
        if self.min_lr and self.schedule != "cosine":
            found.append(f"min_lr={self.min_lr:g}: schedule={self.schedule} does not use it; give schedule=cosine, or leave it out")
        if is_nothing(self.warmup):
            why = f"there is no warm-up with warmup={self.warmup}; lengthen that, or leave it out"
            found += [f"warmup_lr={self.warmup_lr:g}: {why}"] if self.warmup_lr != _WARMUP_LR else []
            found += [f"warmup_rate={self.warmup_rate:g}: {why}"] if self.warmup_rate is not None else []
        return found
