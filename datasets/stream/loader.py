"""Batches by number, made ahead by worker processes into a ring of shared memory, and handed over in order."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from ...cli.errors import DataError
from .batches import Batch, BatchSource, Columns


def load_batches(source: BatchSource, numbers: range, *, workers: int, prefetch: int = 2, pin: bool = False) -> Iterator[Batch]:
    """Yields the batches `numbers` of a source in that order, made by `workers` processes (0: in this one).

    Workers write into a ring of shared memory that is laid out once: a batch costs neither new pages nor the handshake by which
    torch hands over each tensor. So a batch's images hold until the next batch is taken, unless they are pinned, which copies them.

    Raises:
        DataError: naming shard and sample when one cannot be read.
    """
    # When batch n is taken, batch n + workers · prefetch is asked for: with one slot more than that, its slot is not n's.
    ring = _Ring(source, numbers, torch.empty((workers * prefetch + 1, *source.shape), dtype=torch.uint8))
    if workers:
        ring.slots.share_memory_()  # type: ignore[no-untyped-call]  # torch's own signature
    loader: DataLoader[Columns | str] = DataLoader(
        ring,
        batch_size=None,
        sampler=range(len(numbers)),
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        collate_fn=_as_made,
    )
    for turn, made in enumerate(loader):
        if isinstance(made, str):
            raise DataError(made)
        slot = ring.slot(turn)
        yield Batch(slot.pin_memory() if pin else slot, *map(torch.from_numpy, made))


@dataclasses.dataclass(frozen=True)
class _Ring(Dataset[Columns | str]):
    """The batches `numbers` of a source, made in turn into the slots of a ring, uint8[n, B, S, S, 3]."""

    source: BatchSource
    numbers: range
    slots: torch.Tensor

    def slot(self, turn: int) -> torch.Tensor:
        """Returns where the batch of that turn lies."""
        return self.slots[turn % len(self.slots)]

    def __getitem__(self, turn: int) -> Columns | str:
        return self.source.make(self.numbers[turn], self.slot(turn))


def _as_made(made: Any) -> Any:
    """Keeps torch from converting arrays to tensors, which it would hand over one by one."""
    return made
