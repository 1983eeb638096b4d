"""FSDP2: weights, gradients and optimiser state sharded over all ranks, gathered block by block.

Each block is gathered in float32 and computes under autocast, so its numbers are those of the plain engine but for the order of sums.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard

from ...datasets.ranks import Ranks
from ...model_zoo.tensor_files import Stored
from .engine import spare_of
from .group import close_group, open_group
from .held import Held, whole
from .plain import PlainEngine


class ShardedEngine(PlainEngine):
    """Plain PyTorch with FSDP2's `fully_shard` in place of DistributedDataParallel.

    Args:
        module: the whole model, equal on all ranks; it is sharded in place.
        build: makes the optimiser of the sharded model.
        reshard: give up a block's gathered weights after its forward pass, and gather them again for its backward pass.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        build: Callable[[torch.nn.Module], torch.optim.Optimizer],
        ranks: Ranks,
        *,
        precision: str,
        clip_norm: float | None,
        compile_model: bool = False,
        reshard: bool = True,
    ) -> None:
        spare = spare_of(module)
        self._own_group = open_group(ranks)
        self._channels_last = _is_channels_last(module)
        mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
        module = module.to(memory_format=torch.contiguous_format)  # FSDP2 cuts rows, and takes row-major tensors only
        for block in blocks(module):
            if compile_model:
                block.compile()
            fully_shard(block, mesh=mesh, reshard_after_forward=reshard)
        fully_shard(module, mesh=mesh, reshard_after_forward=reshard)
        super().__init__(module, build(module), ranks, precision=precision, clip_norm=clip_norm)
        self._spare = spare
        self._tensors: dict[str, torch.Tensor] = module.state_dict(keep_vars=True)

    def _wrap(self, module: torch.nn.Module, compile_model: bool) -> Any:
        return module

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns float32 logits."""
        if self._channels_last:  # the weights do not ask for it any more
            images = images.contiguous(memory_format=torch.channels_last)
        return super().forward(images)

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Accumulates gradients, unsharded until the last backward of a step, which scatters their mean."""
        assert isinstance(self.module, FSDPModule)
        self.module.set_requires_gradient_sync(last)
        self.module.set_is_last_backward(last)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own signature

    @property
    def skip_waits(self) -> bool:
        """Optimisers of sharded tensors do not leave out a step by themselves."""
        return True

    def _whole_norm(self, norm: torch.Tensor) -> torch.Tensor:
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def shards(self) -> dict[str, torch.Tensor]:
        """Returns the rows that this rank holds, and whole buffers."""
        return {name: _local(tensor.detach()) for name, tensor in self._tensors.items()}

    def whole(self, name: str, shard: torch.Tensor) -> torch.Tensor:
        """Returns all ranks' rows."""
        like = self._tensors[name]
        if not isinstance(like, DTensor):
            return shard
        sharded = DTensor.from_local(shard, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())
        return sharded.full_tensor()

    def place(self, name: str, shard: torch.Tensor) -> Held:
        """Returns this rank's rows."""
        like = self._tensors[name]
        if not isinstance(like, DTensor):
            return whole(shard)
        return Held(shard, tuple(like.shape), self._first_row(like) * math.prod(like.shape[1:]), "rank")

    def close(self) -> None:
        """Ends the process group, where one was opened for a single process."""
        if self._own_group:
            close_group()

    def _held(self, name: str, value: torch.Tensor) -> Held:
        return self.place(name, _local(value.detach())) if isinstance(value, DTensor) else whole(value)

    def _taken(self, name: str, stored: Stored) -> torch.Tensor:
        like = self._tensors[name]
        if not (isinstance(like, DTensor) and stored.shape == tuple(like.shape)):
            return stored.whole()
        rows = _local(like.detach())
        held = self.place(name, rows)
        values = stored.read(held.start, rows.numel()).view(rows.shape).to(like.device)
        return DTensor.from_local(values, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())

    def _first_row(self, like: DTensor) -> int:
        """Returns the first row that this rank holds: FSDP2 cuts dimension 0 as `torch.chunk` does."""
        assert like.placements == (Shard(0),), "fully_shard's default"
        return min(self._ranks.rank * -(-like.shape[0] // self._ranks.world_size), like.shape[0])


def blocks(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Yields the units that are gathered one at a time: the members of a model's outermost lists (a ViT's blocks, a ResNet stage's)."""
    for child in module.children():
        if isinstance(child, torch.nn.Sequential | torch.nn.ModuleList):
            yield from (member for member in child if any(True for _ in member.parameters()))
        else:
            yield from blocks(child)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _is_channels_last(module: torch.nn.Module) -> bool:
    images = [p for p in module.parameters() if p.dim() == 4 and min(p.shape[1:3]) > 1]
    return any(p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous() for p in images)
