"""One batch from its visits: each sample read, decoded and cropped into its row, and replaced where the policy says so."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from ...cli.errors import DataError
from ..augment.crops import View
from ..remote.fetching import Fetching, fetches_to
from ..stores import ImageStore
from .access import UNREADABLE, TwoStepStore, labels_of
from .policies import BadSamples, Replaced
from .stages import Stage, StageClock

_READ, _DECODE, _LOAD, _CROP, _COLLATE = (int(stage) for stage in (Stage.READ, Stage.DECODE, Stage.LOAD, Stage.CROP, Stage.COLLATE))

_FETCH_STAGES = {Fetching.FETCH: Stage.FETCH, Fetching.WAIT: Stage.QUEUE, Fetching.DONE: Stage.READ}


class Columns(NamedTuple):
    """What a batch holds beside its images, a row per sample."""

    labels: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int64]
    valid: npt.NDArray[np.bool_]
    places: npt.NDArray[np.int64]
    replaced: tuple[Replaced, ...] = ()
    weights: npt.NDArray[np.float32] | None = None


class Rows(NamedTuple):
    """What a batch is to hold: sample ids (-1: padding), the draws of their views, and their global places."""

    ids: npt.NDArray[np.int64]  # int64[B]
    draws: npt.NDArray[np.float64]  # float64[B, num_draws]
    places: npt.NDArray[np.int64]  # int64[B]


class StandIns(Protocol):
    """Who takes the place of a sample that cannot be read."""

    def __call__(self, row: int, step: int) -> tuple[int, Sequence[float]] | None:
        """Returns (sample id, draws) of the visit `step` ≥ 1 positions further in the plan than the row's own; None: nobody."""


def assemble(
    store: ImageStore, view: View, rows: Rows, images: torch.Tensor, clock: StageClock, bad_samples: BadSamples, stand_ins: StandIns
) -> Columns:
    """Fills `images`, uint8[B, S, S, 3], with the views of the samples (padding: black) and returns the columns.

    Raises:
        DataError: naming the first sample that cannot be read, or all of the row of them that the policy does not go beyond.
    """
    load = _Loading(store, view, clock)
    ids, replaced = rows.ids.tolist(), []
    with fetches_to(load.fetching):
        for row, (sample, drawn, image) in enumerate(zip(ids, rows.draws.tolist(), images.unbind(), strict=True)):
            if sample < 0:
                image.zero_()
                continue
            try:
                load.into(image, sample, drawn)
            except UNREADABLE as error:
                slot = _replace(load, row, sample, error, image, bad_samples, stand_ins)
                replaced.append(slot._replace(place=int(rows.places[row])))
                ids[row] = slot.replaced_by
    clock.enter(_COLLATE)
    shown = np.array(ids, np.int64)
    return Columns(labels_of(store, shown), shown, shown >= 0, rows.places, tuple(replaced))


class _Loading:
    """Reads, decodes and crops one sample at a time, and tells the clock."""

    def __init__(self, store: ImageStore, view: View, clock: StageClock) -> None:
        self.store, self._view, self._clock = store, view, clock
        self._steps = store if isinstance(store, TwoStepStore) else None
        self._sample = -1

    def into(self, image: torch.Tensor, sample: int, draws: Sequence[float]) -> None:
        """Fills `image`, uint8[S, S, 3]; raises what the store raises."""
        enter, self._sample = self._clock.enter, sample
        if self._steps is None:
            enter(_LOAD, sample)
            decoded = self.store.load(sample)
        else:
            enter(_READ, sample)
            encoded = self._steps.encoded(sample)
            enter(_DECODE, sample)
            decoded = self._steps.decode(encoded)
        enter(_CROP, sample)
        image.copy_(self._view(decoded, draws).permute(1, 2, 0))

    def fetching(self, state: Fetching) -> None:
        """Notes that the read in hand has to get its shard first, or has it now."""
        self._clock.enter(_FETCH_STAGES[state], self._sample)


def _replace(
    load: _Loading, row: int, sample: int, error: Exception, image: torch.Tensor, policy: BadSamples, stand_ins: StandIns
) -> Replaced:
    """Fills `image` with the first readable stand-in and returns the slot, its place still unset."""
    name, reason = load.store.name(sample), str(error)
    if not policy.replaces:
        raise DataError(reason if isinstance(error, DataError) else f"{name}: {reason}") from None
    met = [f"{name}: {reason}"]
    while len(met) < policy.max_in_a_row:
        visit = stand_ins(row, len(met))
        if visit is None:
            image.zero_()
            return Replaced(-1, sample, name, reason, -1)
        try:
            load.into(image, *visit)
        except UNREADABLE as next_error:
            met.append(f"{load.store.name(visit[0])}: {next_error}")
            continue
        return Replaced(-1, sample, name, reason, visit[0])
    raise DataError("\n  ".join([f"{policy.setting}={policy.max_in_a_row}: as many samples in a row cannot be read:", *met]))
