"""A run's state after a step, as this rank writes it: copies on the CPU of what it holds, about 1/W of everything on each of W ranks.

What only this rank holds it writes. Of what all ranks hold alike, each writes its share: such tensors stand in a line, which is cut in W
stretches of equal bytes. No rank needs another's word for that, and no tensor travels.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ...datasets.ranks import Ranks
from ...model_zoo.tensor_files import DTYPE_NAMES
from ..average import Average
from ..engines.engine import Engine
from ..engines.held import Held
from .plain_values import to_plain


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a run stands: all that the stream, the schedule and the random draws depend on."""

    step: int
    """Optimiser steps done; batch `step` is the next."""
    samples: int
    """Samples consumed."""
    seed: int
    plan_version: int


@dataclasses.dataclass(frozen=True)
class Piece:
    """A range of a tensor's row-major flattening, to be written."""

    values: torch.Tensor
    """Flat, on the CPU, nobody else's."""
    shape: tuple[int, ...]
    """Of the whole tensor."""
    start: int

    @property
    def facts(self) -> list[Any]:
        """dtype, shape, start and number of elements, as JSON holds them."""
        return [DTYPE_NAMES[self.values.dtype], list(self.shape), self.start, self.values.numel()]


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Everything that this rank writes of a checkpoint."""

    position: Position
    pieces: Mapping[str, Mapping[str, Piece]]
    """By group ("model", "ema", "optimizer") and name; rank 0's name every tensor there is, if with no elements."""
    facts: Mapping[str, Any]
    """All else, as JSON holds it; rank 0's is written."""


def take_snapshot(position: Position, engine: Engine, average: Average, ranks: Ranks, facts: Mapping[str, Any]) -> Snapshot:
    """Returns this rank's copies of the state as it stands; training may go on while they are written.

    Args:
        facts: what else is to stand in `state.json`.
    """
    groups = {"model": engine.held(engine.shards())}
    if average.shards is not None:
        groups["ema"] = engine.held(average.shards)
    groups["optimizer"], plain = _moments(engine)
    pieces = {group: own_pieces(held, ranks.rank, ranks.world_size) for group, held in groups.items()}
    if ranks.device.type == "cuda":
        torch.cuda.synchronize(ranks.device)  # the copies are asynchronous
    optimizer = {"groups": [to_plain(group)["dict"] for group in engine.groups()], "state": plain}
    return Snapshot(position, pieces, {**facts, "optimizer": optimizer})


def own_pieces(held: Mapping[str, Held], rank: int, world_size: int) -> dict[str, Piece]:
    """Returns copies of what this rank is to write of some tensors; on rank 0 every tensor is named."""
    line_bytes = _line_bytes(held.values())
    cuts = (line_bytes * rank // world_size, line_bytes * (rank + 1) // world_size)
    pieces, place = {}, 0
    for name, one in held.items():
        first, last = 0, one.values.numel()
        if one.by == "all":
            first, last = (min(max(-(-(cut - place) // one.values.element_size()), 0), last) for cut in cuts)
            place += one.values.nbytes
        elif one.by == "first" and rank:
            last = 0
        if last > first or rank == 0:
            pieces[name] = Piece(_copy(one.values, first, last), one.shape, one.start + first)
    return pieces


def _line_bytes(held: Iterable[Held]) -> int:
    return sum(one.values.nbytes for one in held if one.by == "all")


def _moments(engine: Engine) -> tuple[dict[str, Held], dict[str, dict[str, Any]]]:
    """Returns the tensors of the optimiser's state by `parameter:key`, and the rest of it."""
    tensors, plain = {}, {}
    for name, state in engine.moments():
        tensors.update({f"{name}:{key}": value for key, value in state.items() if isinstance(value, Held)})
        plain[name] = {key: to_plain(value) for key, value in state.items() if not isinstance(value, Held)}
    return tensors, {name: state for name, state in plain.items() if state}


def _copy(values: torch.Tensor, first: int, last: int) -> torch.Tensor:
    """Returns elements [first, last) of the row-major flattening; from a GPU into pinned memory, and not waited for."""
    if first == last:
        return torch.empty(0, dtype=values.dtype)
    line = values.detach().contiguous().view(-1)[first:last]
    copy = torch.empty(line.shape, dtype=line.dtype, pin_memory=line.is_cuda)
    return copy.copy_(line, non_blocking=True)
