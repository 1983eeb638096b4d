"""The stream: plan → read → decode → crop → batch, built in loader workers that own no shards and keep no state.

A worker is asked for a batch by its number and computes everything else from it, so the sequence of batches is the same for any
number of workers, and going on after batch n means asking for batch n + 1.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from ..cli.errors import DataError
from .counters import key, uniforms
from .images import UnreadableImageError
from .plan import Order, rank_slice
from .stores import ImageStore
from .transforms import NUM_DRAWS, View

_AUGMENT = 3  # what the key is for; 1 and 2 are the plan's


class Batch(NamedTuple):
    """B samples of one rank. Rows that only pad a last batch have `valid` false, label -1 and id -1."""

    images: torch.Tensor  # uint8[B, S, S, 3]
    labels: torch.Tensor  # int64[B]
    ids: torch.Tensor  # int64[B]
    valid: torch.Tensor  # bool[B]
    places: torch.Tensor  # int64[B] place of each row in the endless order, or in the evaluation set


class BatchSource(Protocol):
    """Batches by number, as loader workers make them; a message in place of a batch says why there is none."""

    def __getitem__(self, number: int) -> Batch | str: ...


@dataclasses.dataclass(frozen=True)
class TrainBatches(Dataset[Batch | str]):
    """Rank `rank`'s part of every global batch of the endless order; randomness is keyed by (seed, epoch, sample id)."""

    store: ImageStore
    order: Order
    view: View
    seed: int
    global_batch_size: int
    rank: int
    world_size: int
    unit: int = 1

    def __getitem__(self, number: int) -> Batch | str:
        places = rank_slice(self.global_batch_size, self.rank, self.world_size, self.unit)
        start = number * self.global_batch_size
        ids, epochs = self.order.take(start + places.start, start + places.stop)
        draws = np.empty((len(ids), NUM_DRAWS))
        for epoch in np.unique(epochs):
            inside = epochs == epoch
            draws[inside] = uniforms(key(self.seed, int(epoch), _AUGMENT), ids[inside], NUM_DRAWS)
        return assemble(self.store, self.view, ids, np.arange(start + places.start, start + places.stop), draws)


@dataclasses.dataclass(frozen=True)
class EvalBatches(Dataset[Batch | str]):
    """Every sample once, in order: batch n of rank r holds places (n · W + r) · B …, padded with invalid rows past the end.

    Every batch has the same shape on every rank and world size, so a row's arithmetic does not depend on them.
    """

    store: ImageStore
    view: View
    batch_size: int
    rank: int = 0
    world_size: int = 1

    def __len__(self) -> int:
        return -(-len(self.store) // (self.batch_size * self.world_size))

    def __getitem__(self, number: int) -> Batch | str:
        start = (number * self.world_size + self.rank) * self.batch_size
        places = np.arange(start, start + self.batch_size)
        ids = np.where(places < len(self.store), places, -1)
        return assemble(self.store, self.view, ids, places, np.zeros((self.batch_size, 0)))


def assemble(
    store: ImageStore, view: View, ids: npt.NDArray[np.int64], places: npt.NDArray[np.int64], draws: npt.NDArray[np.float64]
) -> Batch | str:
    """Returns the batch of samples `ids` (-1: padding), or the message of the first sample that cannot be read."""
    images = torch.empty((len(ids), view.size, view.size, 3), dtype=torch.uint8)
    if torch.utils.data.get_worker_info() is not None:
        images.share_memory_()  # type: ignore[no-untyped-call]  # filled in place, so that handing it to the trainer copies nothing
    for row, (sample, drawn) in enumerate(zip(ids.tolist(), draws.tolist(), strict=True)):
        if sample < 0:
            images[row] = 0
            continue
        try:
            images[row] = view(store.load(sample), drawn).permute(1, 2, 0)
        except UnreadableImageError as error:
            return f"{store.name(sample)}: {error}"
        except DataError as error:
            return str(error)
    valid = ids >= 0
    labels = np.where(valid, store.labels[ids], -1)
    return Batch(images, *map(torch.from_numpy, (labels, ids, valid, places)))


def load_batches(source: Dataset[Batch | str], numbers: range, *, workers: int, prefetch: int = 2, pin: bool = False) -> Iterator[Batch]:
    """Yields the batches `numbers` of a source in that order, made by `workers` processes (0: in this one).

    Raises:
        DataError: naming shard and sample when one cannot be read.
    """
    loader: DataLoader[Batch | str] = DataLoader(
        source,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        collate_fn=_as_made,
        pin_memory=pin,
    )
    for batch in loader:
        if isinstance(batch, str):
            raise DataError(batch)
        yield batch


def _as_made(batch: Any) -> Any:
    """Keeps torch from converting what is a batch already."""
    return batch
