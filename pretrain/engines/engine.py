"""Engines: who runs forward, backward and the optimiser step over all ranks. The trainer speaks to one through `Engine` alone.

A shard is this rank's part of a tensor, as the engine lays it out: the whole one with DistributedDataParallel, a slice with FSDP2 and
ZeRO. Whole tensors are the common tongue: what is saved is whole, under timm's names, and any engine on any number of ranks takes it up.
"""

import abc
import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ...model_zoo.ranks import Ranks
from .portable import Moments, Names, by_name, check_groups, group_names, portable

State = Mapping[str, torch.Tensor]


class Engine(abc.ABC):
    """A prepared model with its optimiser. Gradients are averaged over ranks."""

    module: torch.nn.Module
    """The bare model under timm's names; its tensors may be shards."""
    optimizer: torch.optim.Optimizer
    """The optimiser that timm made; its groups hold the learning rates."""

    def __init__(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks) -> None:
        self.module, self.optimizer, self._ranks = module, optimizer, ranks
        self._names: Names = group_names(module, optimizer)
        self._spare: torch.nn.Module | None = None

    @abc.abstractmethod
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns float32 logits of float32 images."""

    @abc.abstractmethod
    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Accumulates gradients; `last` is the step's last call, after which they are averaged."""

    @abc.abstractmethod
    def step(self, *, measure: bool, skip: bool = False) -> torch.Tensor | None:
        """Clips, updates the weights, clears the gradients; returns their norm before clipping, on the device, if it was measured.

        Args:
            measure: the norm is wanted; it may be measured all the same.
            skip: measure it, and if it is not finite, clear the gradients and change nothing else, neither weights nor optimiser state.
        """

    @property
    def skip_waits(self) -> bool:
        """Whether `skip` makes the host wait for the device at every step."""
        return True

    @abc.abstractmethod
    def moments(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields (parameter's name, its optimiser state with whole tensors); every rank takes part, one parameter at a time."""

    @abc.abstractmethod
    def take_moments(self, moments: Moments) -> None:
        """Takes up whole optimiser states by parameter name; those that the mapping lacks start anew."""

    def shards(self) -> dict[str, torch.Tensor]:
        """Returns this rank's shards of all weights and buffers; they change in place as training goes on."""
        return self.module.state_dict()

    def whole(self, name: str, shard: torch.Tensor) -> torch.Tensor:
        """Returns the whole tensor of which every rank hands in its shard; for a buffer, this rank's."""
        return shard

    def shard(self, name: str, whole: torch.Tensor) -> torch.Tensor:
        """Returns this rank's shard of a whole tensor."""
        return whole

    def gather(self, shards: State) -> dict[str, torch.Tensor]:
        """Returns whole copies on the CPU, row-major, on rank 0, and nothing elsewhere; every rank takes part, one tensor at a time."""
        kept = {}
        for name, shard in shards.items():
            whole = self.whole(name, shard.detach())
            if self._ranks.is_first:
                kept[name] = whole.to("cpu", copy=True).contiguous()
        return kept

    def save(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Returns (weights and buffers, optimiser state) whole, on the CPU, on rank 0, and nothing elsewhere; every rank takes part.

        The copies are the caller's: training may go on while they are written.
        """
        moments: Moments = {}
        for name, state in self.moments():
            if self._ranks.is_first:
                moments[name] = {key: value.to("cpu", copy=True) if torch.is_tensor(value) else value for key, value in state.items()}
        model = self.gather(self.shards())
        return (model, portable(self.optimizer, self._names, moments)) if self._ranks.is_first else ({}, {})

    def load(self, model: State, optimizer: Mapping[str, Any]) -> None:
        """Takes up what any engine's `save` returned, or what plain PyTorch's optimiser did, on every rank.

        Raises:
            DataError: when names or shapes are others than this model's or this optimiser's.
        """
        tree = by_name(optimizer, self._names)
        check_groups(tree, self._names)
        self.take_weights(model)
        self.take_moments(tree["state"])
        for group, kept in zip((group for group in self.optimizer.param_groups), tree["groups"], strict=True):
            group.update({key: value for key, value in kept.items() if key != "params"})

    def take_weights(self, model: State) -> None:
        """Takes up whole weights and buffers; every name and shape must match."""
        self.module.load_state_dict(model)

    @contextlib.contextmanager
    def lend(self, shards: State | None) -> Iterator[torch.nn.Module]:
        """Lends a module with whole weights on every rank, to score: the trained one's (None) or those of other shards, an average's."""
        if shards is None and self._spare is None:
            yield self.module
            return
        module = copy.deepcopy(self._spare or self.module)
        module.to_empty(device=self._ranks.device)
        live = dict(self.module.named_buffers())
        with torch.no_grad():
            for name, buffer in module.named_buffers():  # those that no state dict holds, too
                buffer.copy_(live[name])
            state = module.state_dict()
            for name, shard in (self.shards() if shards is None else shards).items():
                state[name].copy_(self.whole(name, shard.detach()))
        yield module

    def close(self) -> None:  # noqa: B027  (most engines hold nothing)
        """Lets go of what must not outlive the run."""


def spare_of(module: torch.nn.Module) -> torch.nn.Module:
    """Returns a copy of the model without values, from which `lend` makes whole ones once the model itself is sharded."""
    return copy.deepcopy(module).to("meta")
