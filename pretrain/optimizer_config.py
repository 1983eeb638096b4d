"""The settings of the optimiser and its schedule: optimizer.*."""

from typing import Annotated, Any, Literal

from pydantic import Field

from ..cli.config import settings
from .data_config import NonNegative
from .duration import Duration


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
    warmup_lr: NonNegative = 1e-6
    """Learning rate at the first step of the warm-up."""
    warmup_rate: Annotated[float, Field(gt=1)] | None = None
    """Warm-up in stairs instead, each so many times as high as the one before; none: linear."""
    warmup_every: Duration = "1 epochs"
    """warmup_rate: length of a stair."""
    min_lr: NonNegative = 0.0
    """Learning rate at the end of a cosine."""
    decay_every: Duration = "30 %"
    """schedule=step: length of a stair."""
    decay_rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    """schedule=step: factor per stair."""
    decay_at: tuple[Duration, ...] = ()
    """schedule=step: where the stairs begin, such as [30 epochs, 60 epochs, 80 epochs], in place of decay_every."""

    def problems(self) -> list[str]:
        """Returns what does not fit together."""
        found = []
        if self.decay_at and self.schedule != "step":
            found.append(f"decay_at={list(self.decay_at)}: schedule={self.schedule} does not use it; give schedule=step, or leave it out")
        if self.decay_at and self.decay_every != "30 %":
            found.append(f"decay_at={list(self.decay_at)}: takes the place of decay_every={self.decay_every}; give one of them")
        if self.warmup_every != "1 epochs" and self.warmup_rate is None:
            found.append(f"warmup_every={self.warmup_every}: a linear warm-up has no stairs; give warmup_rate, or leave it out")
        return found
