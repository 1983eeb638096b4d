"""Engines: who runs forward, backward and the optimiser step over all ranks. The trainer speaks to one through `Engine` alone."""

import contextlib
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch.nn.parallel import DistributedDataParallel

from ..model_zoo.ranks import Ranks

State = dict[str, torch.Tensor]


class Engine(Protocol):
    """A prepared model with its optimiser. Gradients are averaged over ranks."""

    module: torch.nn.Module
    """The bare model."""
    optimizer: torch.optim.Optimizer

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns float32 logits of float32 images."""

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Accumulates gradients; `last` is the step's last call, after which they are averaged."""

    def step(self, *, measure: bool) -> torch.Tensor | None:
        """Clips, updates the weights, clears the gradients; returns their norm before clipping, on the device, if `measure` asks for it."""

    def save(self) -> tuple[State, dict[str, Any]]:
        """Returns the model's and the optimiser's state, whole, as plain PyTorch has them."""

    def load(self, model: Mapping[str, torch.Tensor], optimizer: dict[str, Any]) -> None:
        """Takes up what `save` returned."""


class PlainEngine:
    """Plain PyTorch: one process, or DistributedDataParallel over gloo or NCCL."""

    def __init__(
        self,
        module: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        ranks: Ranks,
        *,
        precision: str,
        clip_norm: float | None,
        compile_model: bool = False,
    ) -> None:
        self.module, self.optimizer = module, optimizer
        self._autocast_type = ranks.device.type if precision == "bf16" else None
        self._clip_norm = clip_norm
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        runner: Any = torch.compile(module) if compile_model else module
        if ranks.world_size > 1:
            device_ids = [ranks.device] if ranks.device.type == "cuda" else None
            runner = DistributedDataParallel(runner, device_ids=device_ids, gradient_as_bucket_view=True)
        self._runner = runner
        self._holds_back = getattr(runner, "no_sync", contextlib.nullcontext)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns float32 logits."""
        if self._autocast_type is None:
            logits: torch.Tensor = self._runner(images)
            return logits
        with torch.autocast(self._autocast_type, torch.bfloat16):
            logits = self._runner(images)
        return logits.float()

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Accumulates gradients; only the last backward of a step talks to the other ranks."""
        with contextlib.nullcontext() if last else self._holds_back():
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own signature

    def step(self, *, measure: bool) -> torch.Tensor | None:
        """Clips, updates and clears; the norm is a float32 scalar. Where nothing is clipped it costs a pass over all gradients."""
        norm = None
        if self._clip_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._clip_norm, foreach=True)
        elif measure:
            norm = torch.nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None], foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def save(self) -> tuple[State, dict[str, Any]]:
        """Returns (model state, optimiser state)."""
        return self.module.state_dict(), self.optimizer.state_dict()

    def load(self, model: Mapping[str, torch.Tensor], optimizer: dict[str, Any]) -> None:
        """Takes up both states; every name and shape must match."""
        self.module.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)
