"""Engines: who runs forward, backward and the optimiser step over all ranks. The trainer speaks to one through `Engine` alone.

A shard is this rank's part of a tensor, as the engine lays it out: the whole one with DistributedDataParallel, a slice with FSDP2 and
ZeRO. Every shard is a range of the row-major flattening of a whole tensor under timm's name; in such ranges state is saved, and any
engine on any number of ranks reads those that it needs.
"""

import abc
import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ...cli.errors import DataError
from ...datasets.ranks import Ranks
from ...model_zoo.tensor_files import Stored
from .held import Held, whole
from .portable import Moments, Names, by_name, check_groups, group_names, portable_groups

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
        """Yields (parameter's name, its optimiser state, with `Held` for tensors); the same names and keys on every rank."""

    @abc.abstractmethod
    def take_moments(self, moments: Moments) -> None:
        """Takes up optimiser states by parameter name, with `Stored` for tensors; those that the mapping lacks start anew."""

    def shards(self) -> dict[str, torch.Tensor]:
        """Returns this rank's shards of all weights and buffers; they change in place as training goes on."""
        return self.module.state_dict()

    def whole(self, name: str, shard: torch.Tensor) -> torch.Tensor:
        """Returns the whole tensor of which every rank hands in its shard; for a buffer, this rank's."""
        return shard

    def held(self, shards: State) -> dict[str, Held]:
        """Returns the ranges that shards, the engine's own or an average's, are of the whole tensors. Buffers are rank 0's."""
        names = {name for name, _ in self.module.named_parameters(remove_duplicate=False)}
        return {
            name: self.place(name, shard.detach()) if name in names else Held(shard.detach(), tuple(shard.shape), by="first")
            for name, shard in shards.items()
        }

    def place(self, name: str, shard: torch.Tensor) -> Held:
        """Returns the range of a parameter that its shard is, on this rank."""
        return whole(shard)

    def gather(self, shards: State) -> dict[str, torch.Tensor]:
        """Returns whole copies on the CPU, row-major, on rank 0, and nothing elsewhere; every rank takes part, one tensor at a time."""
        kept = {}
        for name, shard in shards.items():
            whole = self.whole(name, shard.detach())
            if self._ranks.is_first:
                kept[name] = whole.to("cpu", copy=True).contiguous()
        return kept

    def groups(self) -> list[dict[str, Any]]:
        """Returns the optimiser's settings by group, with the names of each group's parameters."""
        return portable_groups(self.optimizer, self._names)

    def load(self, model: Mapping[str, Stored], optimizer: Mapping[str, Any]) -> None:
        """Takes up what any engine saved, or what plain PyTorch's optimiser did; every rank reads what it holds.

        Args:
            optimizer: `groups` and `moments` as saved, or `Optimizer.state_dict`'s tree; tensors are `Stored`.

        Raises:
            DataError: when names or shapes are others than this model's or this optimiser's.
        """
        tree = by_name(optimizer, self._names)
        check_groups(tree, self._names)
        self.take_weights(model)
        self.take_moments(tree["state"])
        for group, kept in zip(self.optimizer.param_groups, tree["groups"], strict=True):
            group.update({key: value for key, value in kept.items() if key != "params"})

    @torch.no_grad()
    def take_weights(self, model: Mapping[str, Stored]) -> None:
        """Takes up weights and buffers; every name and shape must match."""
        ours = self.held(self.shards())
        require_same({name: held.shape for name, held in ours.items()}, {name: stored.shape for name, stored in model.items()})
        for name, held in ours.items():
            held.fill(model[name])

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


def require_same(shapes: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
    """Raises DataError unless names and shapes are the model's."""
    if found != shapes:
        differing = sorted(name for name in found.keys() | shapes.keys() if found.get(name) != shapes.get(name))
        raise DataError(f"weights that do not fit the model: {', '.join(differing[:3])}")


def spare_of(module: torch.nn.Module) -> torch.nn.Module:
    """Returns a copy of the model without values, from which `lend` makes whole ones once the model itself is sharded."""
    return copy.deepcopy(module).to("meta")
