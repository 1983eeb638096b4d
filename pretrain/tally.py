"""What happened between two readings of the figures: losses, norms and samples, kept on the device until somebody reads them."""

import dataclasses
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist

from ..datasets.counters import mix
from ..datasets.ranks import Ranks
from ..datasets.stream.batches import Batch

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Figures:
    """The figures of a stretch of steps, equal on all ranks."""

    loss: float
    """Mean over all ranks and all steps that were made; NaN: none was."""
    gradient_norm: float | None
    """Of the last step, where it was measured."""
    stream: str
    """Fingerprint of the samples seen."""
    is_finite: bool
    """Whether every loss and every gradient norm that is known was finite, of the steps that were made."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """The first step of a stretch whose figures were not finite."""

    step: int
    """Counted from 1."""
    losses: tuple[float, ...]
    """Each rank's part of the mean loss."""
    gradient_norm: float | None
    """None: not measured."""
    samples: tuple[tuple[int, ...], ...]
    """Each rank's sample ids."""

    @property
    def ranks(self) -> list[int]:
        """Whose loss was not finite; nobody's: it was the gradient."""
        return [rank for rank, loss in enumerate(self.losses) if not np.isfinite(loss)]


class Tally:
    """Adds up the loss on the device, and a fingerprint of the samples seen, between two log lines."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._clear()

    def count(self, batch: Batch, loss: torch.Tensor, gradient_norm: torch.Tensor | None, made: torch.Tensor | None = None) -> None:
        """Counts one step; the last one before a reading brings its gradient norm.

        Args:
            made: bool[], whether the step was made; its loss counts only then. None: it was.
        """
        self._loss += loss if made is None else torch.where(made, loss, 0.0)
        self._losses.append(loss)
        self._norms.append(gradient_norm)
        self._are_made = made is None
        self._batches.append((batch.ids, batch.places))

    @property
    def num_steps(self) -> int:
        """Steps since the last reading."""
        return len(self._batches)

    def is_finite(self) -> torch.Tensor:
        """Returns whether this rank's losses and norms are, bool[] on the device; of steps that were left out nothing is said."""
        norms = [norm for norm in self._norms if norm is not None] if self._are_made else []
        return torch.isfinite(torch.stack([self._loss, *norms])).all()

    def read(self, num_left_out: int = 0) -> Figures:
        """Returns the figures since the last reading; `clear` begins a new one.

        Of a step that was not known to be the last before the reading the gradient norm was not measured.

        The fingerprint is Σ hash(sample id, place in the global order) mod 2⁶⁴ over all ranks: equal exactly when the same
        samples were seen at the same places, on whatever rank.
        """
        finite = self.is_finite().float()
        loss, num_finite = self._ranks.sum(torch.stack([self._loss, finite])).tolist()
        num_made = self.num_steps - num_left_out
        hashes = [mix(ids.numpy().astype(np.uint64) ^ mix(places.numpy().astype(np.uint64))) for ids, places in self._batches]
        total = np.concatenate(hashes).sum(dtype=np.uint64).astype(np.int64)
        stream = int(self._ranks.sum(torch.tensor(int(total), device=self._ranks.device))) & 0xFFFFFFFFFFFFFFFF
        return Figures(
            loss=loss / num_made if num_made else float("nan"),
            gradient_norm=None if self._norms[-1] is None else float(self._norms[-1]),
            stream=f"{stream:016x}",
            is_finite=num_finite == self._ranks.world_size,
        )

    def fault(self, done: int) -> Fault | None:
        """Returns the first step since the last reading whose loss on any rank, or norm, was not finite; every rank takes part.

        Args:
            done: number of the last step counted.
        """
        losses = torch.stack(self._losses).tolist()
        norms = [None if norm is None else float(norm) for norm in self._norms]
        bad = [not (np.isfinite(loss) and np.isfinite(norm or 0.0)) for loss, norm in zip(losses, norms, strict=True)]
        place = min(self._gather(bad.index(True) if any(bad) else len(bad)))
        if place == len(bad):
            return None
        samples = self._gather(tuple(self._batches[place][0].tolist()))
        return Fault(done - len(bad) + place + 1, tuple(self._gather(losses[place])), norms[place], tuple(samples))

    def clear(self) -> None:
        """Begins a new stretch."""
        self._clear()

    def _gather(self, value: _T) -> list[_T]:
        """Returns every rank's value; only ever called when the run is about to end."""
        if self._ranks.world_size == 1:
            return [value]
        found: list[_T] = [value] * self._ranks.world_size
        dist.all_gather_object(found, value)
        return found

    def _clear(self) -> None:
        self._loss = torch.zeros((), device=self._ranks.device)
        self._losses: list[torch.Tensor] = []
        self._norms: list[torch.Tensor | None] = []
        self._are_made = True
        self._batches: list[tuple[torch.Tensor, torch.Tensor]] = []
