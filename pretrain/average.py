"""A moving average of the weights, kept in shards as the engine keeps the weights."""

from collections.abc import Mapping
from typing import Protocol

import torch

from ..model_zoo.tensor_files import Stored
from .engines.engine import Engine, require_same


class Average(Protocol):
    """Weights to score and export; `shards` is None where they are the trained ones."""

    @property
    def shards(self) -> dict[str, torch.Tensor] | None:
        """This rank's shards."""

    def update(self, made: torch.Tensor | None = None) -> None:
        """Takes in the weights after a step; after one that was not made (`made`, bool[] on the device, is false), does nothing."""

    def load(self, state: Mapping[str, Stored] | None) -> None:
        """Takes up saved averages, on every rank its shards; None: the engine's weights as they stand."""


class NoAverage:
    """No averaging: the weights themselves."""

    shards: dict[str, torch.Tensor] | None = None

    def update(self, made: torch.Tensor | None = None) -> None:
        """Does nothing."""

    def load(self, state: Mapping[str, Stored] | None) -> None:
        """Does nothing."""


class MovingAverage:
    """average ← decay · average + (1 − decay) · weights, of buffers too; whole numbers are copied.

    Equal to timm's ModelEmaV3 bit for bit.
    """

    def __init__(self, engine: Engine, decay: float) -> None:
        self._engine, self._decay = engine, decay
        self.shards: dict[str, torch.Tensor] | None = _copies(engine)

    @torch.no_grad()
    def update(self, made: torch.Tensor | None = None) -> None:
        """Takes in the weights after a step; one that was not made weighs nothing."""
        assert self.shards is not None, "set when made"
        weights = self._engine.shards()
        floating = [name for name, tensor in weights.items() if tensor.is_floating_point()]
        ours, theirs = [self.shards[name] for name in floating], [weights[name] for name in floating]
        if made is None:
            torch._foreach_lerp_(ours, theirs, weight=1.0 - self._decay)
        else:
            weight = torch.where(made, 1.0 - self._decay, 0.0)
            torch._foreach_lerp_(ours, theirs, [weight.to(tensor.dtype) for tensor in ours])
        for name, tensor in weights.items():
            if not tensor.is_floating_point():
                self.shards[name].copy_(tensor)

    @torch.no_grad()
    def load(self, state: Mapping[str, Stored] | None) -> None:
        """Takes up saved averages, each rank its shards."""
        self.shards = _copies(self._engine)
        if state is None:
            return
        ours = self._engine.held(self.shards)
        require_same({name: held.shape for name, held in ours.items()}, {name: stored.shape for name, stored in state.items()})
        for name, held in ours.items():
            held.fill(state[name])


def create_average(engine: Engine, decay: float | None) -> Average:
    """Returns an exponential moving average of the engine's weights, or the weights themselves."""
    return NoAverage() if decay is None else MovingAverage(engine, decay)


def _copies(engine: Engine) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in engine.shards().items()}
