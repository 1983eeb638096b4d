"""Numbers that are not finite: what a run does about a step whose loss or gradient norm is NaN or infinite.

Both policies look on the device. `Stop` costs nothing: it is asked where figures are read anyway, at log lines and saves. `Skip` makes
one thing of the ranks' losses and of the gradient: a loss that is not finite turns its rank's gradient into NaN, and so the averaged
gradient and its norm on every rank. A norm that is not finite is then the one sign that the step must be as if it had not been.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch


class Nonfinite(Protocol):
    """A policy."""

    skips: bool
    """Whether the engine must leave out a step whose gradient norm is not finite."""

    def factor(self, loss: torch.Tensor, world_size: int) -> torch.Tensor | int:
        """Returns what a part's loss is multiplied with before its backward pass: the world size, since engines average over ranks."""

    def made(self, gradient_norm: torch.Tensor | None) -> torch.Tensor | None:
        """Takes in a step's norm; returns whether the step was made, bool[] on the device, or None where every step is."""

    def read(self) -> tuple[int, int]:
        """Returns (steps left out since the last reading, most of them in a row); waits for the device."""


class Stop:
    """Every step is made; the run ends once figures are read that are not finite."""

    skips = False

    def factor(self, loss: torch.Tensor, world_size: int) -> torch.Tensor | int:
        """Returns the world size."""
        return world_size

    def made(self, gradient_norm: torch.Tensor | None) -> torch.Tensor | None:
        """Returns None."""
        return None

    def read(self) -> tuple[int, int]:
        """Returns zeros."""
        return 0, 0


class Skip:
    """A step that is not finite on any rank is left out on all; they are counted on the device."""

    skips = True

    def __init__(self, device: torch.device) -> None:
        self._left_out, self._row, self._longest = (torch.zeros((), dtype=torch.int64, device=device) for _ in range(3))

    def factor(self, loss: torch.Tensor, world_size: int) -> torch.Tensor | int:
        """Returns the world size, or NaN where the loss is not finite: the gradient need not show it by itself."""
        return torch.where(torch.isfinite(loss.detach()), float(world_size), torch.nan)

    def made(self, gradient_norm: torch.Tensor | None) -> torch.Tensor | None:
        """Counts a step, and returns whether its norm is finite."""
        assert gradient_norm is not None, "the engine was asked to measure"
        made = torch.isfinite(gradient_norm)
        self._left_out += ~made
        self._row = torch.where(made, 0, self._row + 1)
        self._longest = torch.maximum(self._longest, self._row)
        return made

    def read(self) -> tuple[int, int]:
        """Returns (steps left out since the last reading, most of them in a row, of which some may have been counted before)."""
        left_out, longest = torch.stack((self._left_out, self._longest)).tolist()
        self._left_out = torch.zeros_like(self._left_out)
        self._longest = self._row.clone()
        return left_out, longest


class Buffers:
    """A module's buffers (batch-norm statistics) as they were before a step, to be put back when the step was given up or left out."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._live = list(module.buffers())
        self._before = [buffer.clone() for buffer in self._live]

    @torch.no_grad()
    def restore(self) -> None:
        """Puts all back."""
        for buffer, before in zip(self._live, self._before, strict=True):
            buffer.copy_(before)

    @torch.no_grad()
    def restore_unless(self, made: torch.Tensor) -> None:
        """Puts all back where `made`, bool[] on their device, is false: a few kernels for all buffers of a type, and no wait."""
        for dtype in {buffer.dtype for buffer in self._live}:
            live = [buffer for buffer in self._live if buffer.dtype == dtype]
            before = [buffer for buffer in self._before if buffer.dtype == dtype]
            chosen = torch.split_with_sizes(torch.where(made, _line(live), _line(before)), [buffer.numel() for buffer in live])
            torch._foreach_copy_(live, [part.view(buffer.shape) for part, buffer in zip(chosen, live, strict=True)])


@torch.no_grad()
def all_finite(tensors: Iterable[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Returns whether every element of all floating-point tensors is finite, bool[] on the device: one pass, no copies."""
    floating = [tensor for tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    if not floating:
        return torch.ones((), dtype=torch.bool, device=device)
    greatest: Sequence[torch.Tensor] = torch._foreach_norm(floating, ord=torch.inf)
    return torch.isfinite(torch.stack([value.to(device, torch.float64) for value in greatest])).all()


def _line(buffers: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([buffer.reshape(-1) for buffer in buffers])
