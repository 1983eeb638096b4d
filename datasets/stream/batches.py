"""The stream: plan → read → decode → crop → batch, built in loader workers that own no shards and keep no state.

A worker is asked for a batch by its number and computes everything else from it, so the sequence of batches is the same for any
number of workers, and going on after batch n means asking for batch n + 1.
"""

import bisect
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from ...cli.errors import UserError
from ..augment.crops import View
from ..counters import key, mix, uniforms
from ..plan.order import Visits
from ..plan.slices import rank_slice
from ..stores import ImageStore
from .access import Expectation, ShardedStore, place_of
from .assemble import Columns, Rows, assemble
from .policies import FAIL, BadSamples, Replaced
from .stages import Stage, StageClock

_COPY, _STAND_IN = 0x434F5059, 0x5354414E  # what a visit's key is mixed with, so that no two uses of it share their draws


class Batch(NamedTuple):
    """B samples of one rank. Rows without a sample (they pad a last batch) have `valid` false, label -1 and id -1."""

    images: torch.Tensor  # uint8[B, S, S, 3]
    labels: torch.Tensor  # int64[B]
    ids: torch.Tensor  # int64[B]
    valid: torch.Tensor  # bool[B]
    places: torch.Tensor  # int64[B] place of each row in the endless sequence of rows, or in the evaluation set
    replaced: tuple[Replaced, ...] = ()  # slots of this batch whose sample could not be read
    weights: torch.Tensor | None = None  # float32[B] of each row's loss; None: all 1


class BatchSource(Protocol):
    """Batches by number, made into memory that the caller provides. Picklable, and safe between threads."""

    def shape(self, number: int) -> tuple[int, int, int, int]:
        """Returns [B, S, S, 3] of the images of batch `number`."""

    def largest(self, numbers: range) -> tuple[int, int, int, int]:
        """Returns the shape of the largest of the batches `numbers`."""

    def make(self, number: int, images: torch.Tensor, clock: StageClock, num_before: int = 0) -> Columns:
        """Fills `images`, uint8[B, S, S, 3], with batch `number`, telling `clock` what it does, and returns its columns.

        Args:
            num_before: how many batches before it others may still be making, so that what they read is kept at hand.

        Raises:
            DataError: naming shard and sample, when one cannot be read.
        """

    def let_go(self) -> None:
        """Lets go of what was kept at hand; called when nobody in this process makes batches any more."""

    def place_of(self, sample: int) -> str:
        """Returns where a sample lies, for messages, without touching the disk."""


class Plan(Protocol):
    """The endless order of visits."""

    def take(self, start: int, stop: int) -> Visits:
        """Returns the visits at positions start ≤ p < stop."""

    def shards_in(self, first: int, last: int, num_ahead: int) -> list[int]:
        """Returns the shards in use at the positions first ≤ p ≤ last, then the next `num_ahead` that come into use."""


class RowWeights(Protocol):
    """How much the loss of a row weighs."""

    def of(self, positions: npt.NDArray[np.int64], ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Returns float32[n] for the samples that are shown at some positions of the plan."""


@dataclasses.dataclass(frozen=True)
class TrainBatches:
    """Rank `rank`'s part of every global batch of the endless sequence of rows; all randomness is drawn from the visits' keys.

    With B = `global_batch_size` and R = `repeats`, batch n covers the rows offset + n·B + q, 0 ≤ q < B, of which the rank takes a
    contiguous part. Row q shows the plan's position (offset + n·B) / R + q mod B/R: the same B/R samples R times over, copy q div B/R
    with draws of its own (repeated augmentation, arXiv 1901.09335). Copies lie B/R rows apart, so on different ranks where there are
    at least R ranks, and neighbours, which mixup blends, are different positions of the plan.

    A run that changes its batch size after c rows goes on with offset = c - n·B for the next batch n; it may be negative.

    `view` makes the images up to the first of `later_views`, (n, view) in rising order of n, each of which makes them from batch n on.

    Raises:
        UserError: for `repeats` that do not fit the batch size.
    """

    store: ImageStore
    order: Plan
    view: View
    global_batch_size: int
    rank: int
    world_size: int
    unit: int = 1
    offset: int = 0
    repeats: int = 1
    bad_samples: BadSamples = FAIL
    num_ahead: int = 2
    """Shards beyond those in use that the store is told to expect."""
    later_views: tuple[tuple[int, View], ...] = ()
    weights: RowWeights | None = None
    """None: rows have no weights."""
    _expectation: Expectation = dataclasses.field(default_factory=Expectation, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.repeats < 1 or self.global_batch_size % self.repeats:
            raise UserError(f"repeats={self.repeats}: must divide the global batch size of {self.global_batch_size}")
        if self.unit > 1 and self.global_batch_size == self.repeats > 1:
            raise UserError(f"repeats={self.repeats}: mixing needs two different samples in a batch; use at most {self.repeats // 2}")
        if self.offset % self.repeats:
            raise UserError(f"offset={self.offset}: must be a multiple of repeats={self.repeats}")

    def shape(self, number: int) -> tuple[int, int, int, int]:
        """Returns [B, S, S, 3] of this rank's images of batch `number`."""
        size = self.view_of(number).size
        return len(self._slice), size, size, 3

    def largest(self, numbers: range) -> tuple[int, int, int, int]:
        """Returns the shape of the largest of the batches `numbers`."""
        borders = [start for start, _ in self.later_views if start in numbers]
        return max(self.shape(number) for number in (numbers.start, *borders))

    def view_of(self, number: int) -> View:
        """Returns the view that makes the images of batch `number`."""
        begun = bisect.bisect_right(self.later_views, number, key=lambda later: later[0])
        return self.later_views[begun - 1][1] if begun else self.view

    @property
    def _slice(self) -> range:
        return rank_slice(self.global_batch_size, self.rank, self.world_size, self.unit)

    def make(self, number: int, images: torch.Tensor, clock: StageClock, num_before: int = 0) -> Columns:
        """Fills `images` with this rank's part of global batch `number`."""
        clock.enter(Stage.PLAN)
        first = self.offset + number * self.global_batch_size
        assert first >= 0
        self._expectation.tell(self.store, number, num_before, self._shards)
        rows = np.arange(self._slice.start, self._slice.stop)
        copies, inside = np.divmod(rows, self.global_batch_size // self.repeats)
        positions = first // self.repeats + inside
        view = self.view_of(number)
        ids, draws = self._visits(view, positions, copies)

        def stand_in(row: int, step: int) -> tuple[int, Sequence[float]]:
            sample, drawn = self._visits(view, positions[row : row + 1] + step, copies[row : row + 1], step)
            return int(sample[0]), drawn[0].tolist()

        columns = assemble(self.store, view, Rows(ids, draws, first + rows), images, clock, self.bad_samples, stand_in)
        return columns if self.weights is None else columns._replace(weights=self.weights.of(positions, columns.ids))

    def _visits(
        self, view: View, positions: npt.NDArray[np.int64], copies: npt.NDArray[np.int64], step: int = 0
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Returns the sample ids at the plan's `positions` and a view's draws of those copies; `step` > 0: as stand-ins of so far back."""
        if len(positions) == 0:
            return np.zeros(0, np.int64), np.zeros((0, view.num_draws))
        start = int(positions.min())
        visits = self.order.take(start, int(positions.max()) + 1)
        keys = visits.keys[positions - start]
        for purpose, number in ((_COPY, copies), (_STAND_IN, np.full(len(copies), step))):
            if number.any():
                salted = mix(keys ^ mix(number.astype(np.uint64) ^ key(purpose)))
                keys = np.where(number > 0, salted, keys)
        ids = visits.ids[positions - start]
        return ids, uniforms(keys, ids, view.num_draws)

    def _shards(self, number: int, num_before: int) -> list[int]:
        """Returns the shards that batch `number` and the `num_before` before it read, on all ranks, which share a cache; then the next."""
        start, stop = (self.offset + batch * self.global_batch_size for batch in (number - num_before, number + 1))
        return self.order.shards_in(start // self.repeats, stop // self.repeats - 1, self.num_ahead)

    def let_go(self) -> None:
        """Has the store let go of its files."""
        self._expectation.let_go(self.store)

    def place_of(self, sample: int) -> str:
        """Returns where a sample lies, for messages."""
        return place_of(self.store, sample)


@dataclasses.dataclass(frozen=True)
class EvalBatches:
    """Every sample once, in order: batch n of rank r holds places (n · W + r) · B …, padded with invalid rows past the end.

    Every batch has the same shape on every rank and world size, so a row's arithmetic does not depend on them. Where `bad_samples`
    replaces, an unreadable sample leaves an invalid row, since nothing can stand in for it: only for metrics that leave those out.
    """

    store: ImageStore
    view: View
    batch_size: int
    rank: int = 0
    world_size: int = 1
    bad_samples: BadSamples = FAIL
    num_ahead: int = 2
    """Shards beyond those in use that the store is told to expect."""
    _expectation: Expectation = dataclasses.field(default_factory=Expectation, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return -(-len(self.store) // (self.batch_size * self.world_size))

    def shape(self, number: int) -> tuple[int, int, int, int]:
        """Returns [B, S, S, 3], every batch's."""
        return self.batch_size, self.view.size, self.view.size, 3

    def largest(self, numbers: range) -> tuple[int, int, int, int]:
        """Returns [B, S, S, 3], every batch's."""
        return self.shape(0)

    def make(self, number: int, images: torch.Tensor, clock: StageClock, num_before: int = 0) -> Columns:
        """Fills `images` with batch `number` of this rank."""
        clock.enter(Stage.PLAN)
        start = self._start(number)
        if isinstance(self.store, ShardedStore):
            self._expectation.tell(self.store, number, num_before, self._shards)
        places = np.arange(start, start + self.batch_size)
        ids = np.where(places < len(self.store), places, -1)
        rows = Rows(ids, np.zeros((self.batch_size, 0)), places)
        return assemble(self.store, self.view, rows, images, clock, self.bad_samples, _nobody)

    def _start(self, number: int) -> int:
        return (number * self.world_size + self.rank) * self.batch_size

    def _shards(self, number: int, num_before: int) -> list[int]:
        """Returns the shards of batch `number` and the `num_before` before it, then the next that this rank reads."""
        shards = dict.fromkeys(shard for batch in range(number - num_before, number + 1) for shard in self._shards_of(batch))
        most = len(shards) + self.num_ahead
        while len(shards) < most:  # leaps over the batches that read no other shard
            last = next(reversed(shards), -1)
            number = bisect.bisect_right(range(len(self)), last, lo=number + 1, key=lambda batch: max(self._shards_of(batch), default=last))
            if number >= len(self):
                break
            shards |= dict.fromkeys(self._shards_of(number))
        return list(shards)[:most]

    def _shards_of(self, number: int) -> range:
        """Returns the ordinals of the shards that hold a batch of this rank."""
        assert isinstance(self.store, ShardedStore)
        first, last = self._start(number), min(self._start(number) + self.batch_size, len(self.store)) - 1
        return range(self.store.shard_of(first)[0], self.store.shard_of(last)[0] + 1) if first <= last else range(0)

    def let_go(self) -> None:
        """Has the store let go of its files."""
        self._expectation.let_go(self.store)

    def place_of(self, sample: int) -> str:
        """Returns where a sample lies, for messages."""
        return place_of(self.store, sample)


def _nobody(row: int, step: int) -> None:
    return None
