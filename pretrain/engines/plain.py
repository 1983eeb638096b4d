"""Plain PyTorch: one process, or DistributedDataParallel."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from ...datasets.ranks import Ranks
from ...model_zoo.tensor_files import Stored
from .engine import Engine
from .held import Held, whole
from .portable import Moments


class PlainEngine(Engine):
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
        super().__init__(module, optimizer, ranks)
        self._autocast_type = ranks.device.type if precision == "bf16" else None
        self._clip_norm = clip_norm
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._runner = self._wrap(module, compile_model)
        self._holds_back = getattr(self._runner, "no_sync", contextlib.nullcontext)

    def _wrap(self, module: torch.nn.Module, compile_model: bool) -> Any:
        runner: Any = torch.compile(module) if compile_model else module
        if self._ranks.world_size > 1:
            device_ids = [self._ranks.device] if self._ranks.device.type == "cuda" else None
            runner = DistributedDataParallel(runner, device_ids=device_ids, gradient_as_bucket_view=True)
        return runner

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

    def step(self, *, measure: bool, skip: bool = False) -> torch.Tensor | None:
        """Clips, updates and clears; the norm is a float32 scalar. Where nothing is clipped it costs a pass over all gradients."""
        norm = None
        if self._clip_norm is not None:
            norm = self._whole_norm(torch.nn.utils.clip_grad_norm_(self._parameters, self._clip_norm, foreach=True))
        elif measure or skip:
            norm = self._whole_norm(torch.nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None], foreach=True))
        if skip and norm is not None:
            self._step_if_finite(norm)
        else:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    @property
    def skip_waits(self) -> bool:
        """Only PyTorch's fused Adam and AdamW leave out a step by themselves."""
        # Fused SGD does too, but for its first step, which leaves it a momentum that nobody has written.
        heeds = isinstance(self.optimizer, torch.optim.Adam) and all(group.get("fused") for group in self.optimizer.param_groups)
        return not heeds

    def _step_if_finite(self, norm: torch.Tensor) -> None:
        if self.skip_waits:
            if bool(torch.isfinite(norm)):
                self.optimizer.step()
            return
        optimizer: Any = self.optimizer  # as torch's GradScaler speaks to it
        optimizer.grad_scale, optimizer.found_inf = None, (~torch.isfinite(norm)).float()
        try:
            optimizer.step()
        finally:
            del optimizer.grad_scale, optimizer.found_inf

    def _whole_norm(self, norm: torch.Tensor) -> torch.Tensor:
        """Returns the norm over all ranks' shards."""
        return norm

    def moments(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields (name, state) of each parameter that has been stepped."""
        for parameter, name in self._order():
            state = self.optimizer.state.get(parameter)
            if state:
                yield name, {key: self._held(name, value) if torch.is_tensor(value) else value for key, value in state.items()}

    def take_moments(self, moments: Moments) -> None:
        """Takes up the states, cast as PyTorch's `load_state_dict` casts them."""
        state, number, groups = {}, 0, []
        ordered = self._order()
        for group in self.optimizer.param_groups:
            numbers = list(range(number, number + len(group["params"])))
            number += len(numbers)
            groups.append({**group, "params": numbers})
        for index, (_, name) in enumerate(ordered):
            if name in moments:
                state[index] = {
                    key: self._taken(name, value) if isinstance(value, Stored) else value for key, value in moments[name].items()
                }
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})

    def _order(self) -> list[tuple[torch.Tensor, str]]:
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        return list(zip(parameters, (name for members in self._names for name in members), strict=True))

    def _held(self, name: str, value: torch.Tensor) -> Held:
        """Returns what this rank holds of a tensor of a parameter's state."""
        return whole(value)

    def _taken(self, name: str, stored: Stored) -> torch.Tensor:
        """Returns a tensor of a parameter's state as the optimiser holds it."""
        return stored.whole()
