"""The stream: plan → read → decode → crop → batch, built in loader workers that own no shards and keep no state.

A worker is asked for a batch by its number and computes everything else from it, so the sequence of batches is the same for any
number of workers, and going on after batch n means asking for batch n + 1.
"""

import dataclasses
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from ...cli.errors import DataError
from ..augment.crops import View
from ..counters import uniforms
from ..images import UnreadableImageError
from ..plan.order import Order
from ..plan.slices import rank_slice
from ..stores import ImageStore


class Batch(NamedTuple):
    """B samples of one rank. Rows that only pad a last batch have `valid` false, label -1 and id -1."""

    images: torch.Tensor  # uint8[B, S, S, 3]
    labels: torch.Tensor  # int64[B]
    ids: torch.Tensor  # int64[B]
    valid: torch.Tensor  # bool[B]
    places: torch.Tensor  # int64[B] place of each row in the endless order, or in the evaluation set


class Columns(NamedTuple):
    """What a batch holds beside its images, a row per sample."""

    labels: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int64]
    valid: npt.NDArray[np.bool_]
    places: npt.NDArray[np.int64]


class BatchSource(Protocol):
    """Batches by number, all of one shape, made into memory that the caller provides."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[B, S, S, 3] of the images of every batch."""

    def make(self, number: int, images: torch.Tensor) -> Columns | str:
        """Fills `images`, uint8[B, S, S, 3], with batch `number`; returns its columns, or the message that says why there is none."""


@dataclasses.dataclass(frozen=True)
class TrainBatches:
    """Rank `rank`'s part of every global batch of the endless order; randomness is keyed by (seed, epoch, sample id)."""

    store: ImageStore
    order: Order
    view: View
    seed: int
    global_batch_size: int
    rank: int
    world_size: int
    unit: int = 1

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[B, S, S, 3] of this rank's images."""
        return len(self._slice), self.view.size, self.view.size, 3

    @property
    def _slice(self) -> range:
        return rank_slice(self.global_batch_size, self.rank, self.world_size, self.unit)

    def make(self, number: int, images: torch.Tensor) -> Columns | str:
        """Fills `images` with this rank's part of global batch `number`."""
        places = self._slice
        start = number * self.global_batch_size
        visits = self.order.take(start + places.start, start + places.stop)
        draws = uniforms(visits.keys, visits.ids, self.view.num_draws)
        return assemble(self.store, self.view, visits.ids, np.arange(start + places.start, start + places.stop), draws, images)


@dataclasses.dataclass(frozen=True)
class EvalBatches:
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

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[B, S, S, 3] of every batch's images."""
        return self.batch_size, self.view.size, self.view.size, 3

    def make(self, number: int, images: torch.Tensor) -> Columns | str:
        """Fills `images` with batch `number` of this rank."""
        start = (number * self.world_size + self.rank) * self.batch_size
        places = np.arange(start, start + self.batch_size)
        ids = np.where(places < len(self.store), places, -1)
        return assemble(self.store, self.view, ids, places, np.zeros((self.batch_size, 0)), images)


def assemble(
    store: ImageStore,
    view: View,
    ids: npt.NDArray[np.int64],
    places: npt.NDArray[np.int64],
    draws: npt.NDArray[np.float64],
    images: torch.Tensor,
) -> Columns | str:
    """Fills `images` with the views of samples `ids` (-1: padding, black); returns the columns, or the message of the first sample that
    cannot be read.
    """
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
    return Columns(np.where(valid, store.labels[ids], -1), ids, valid, places)
