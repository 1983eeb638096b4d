"""The grown dataset that a run trains from: which of its snapshots, and what that says of folders and of how often samples are taken.

A run keeps to the snapshot of its recorded plan, whatever its growth state has gained since, until `sampling.replan` lets the newest in.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..cli.errors import BambooError, DataError, UserError
from ..datasets.growth.snapshot import LATEST_NAME, Snapshot, TrainingFolder, open_snapshot, snapshot_folder
from ..datasets.plan.history import read_history
from ..datasets.plan.rates import MAX_RATE
from ..datasets.plan.weighting import Weighting
from ..datasets.remote.cache import ShardCache
from ..datasets.shards import Shards


@dataclasses.dataclass(frozen=True)
class Grown:
    """A snapshot, opened for a run."""

    snapshot: Snapshot
    newest: int
    """Number of the snapshot that was asked for; another than the snapshot's own where the run keeps to an earlier one."""

    @property
    def identity(self) -> str:
        """What a plan calls the snapshot."""
        return identity(self.snapshot)

    def reopen(self, recorded: str, cache: ShardCache) -> list[Shards] | None:
        """Returns the training folders of the snapshot that a plan calls `recorded`, None where it or its data is not there any more."""
        number, _, content_hash = recorded.partition(":")
        folder = snapshot_folder(self.snapshot.state, int(number)) if number else None
        if folder is None or not folder.is_dir():
            return None
        earlier = open_snapshot(folder)
        try:
            parts = [Shards.open(folder.location, cache=cache) for folder in earlier.training]
        except BambooError:
            return None
        hashes = [folder.data_hash for folder in earlier.training]
        return parts if earlier.content_hash == content_hash and hashes == [part.data_hash for part in parts] else None

    def check_data(self, parts: Sequence[Shards]) -> None:
        """Compares the training folders, opened, with the data that the snapshot was grown over.

        Raises:
            DataError: when one holds other data.
        """
        for folder, part in zip(self.snapshot.training, parts, strict=True):
            if part.data_hash != folder.data_hash:
                found = f"holds data {part.data_hash}, and snapshot {self.snapshot.number} was grown over {folder.data_hash}"
                raise DataError(f"{part.folder}: {found}; put that data back, or grow anew over what is there: bamboo grow")

    def weightings(self) -> tuple[Weighting, ...]:
        """Returns how often the samples of each training folder are taken; an even one where all of them are passed over."""
        training = self.snapshot.training
        return tuple(self._weighting(folder) if is_taken_from(self.snapshot, folder) else Weighting() for folder in training)

    def _weighting(self, folder: TrainingFolder) -> Weighting:
        return Weighting(
            weights=folder.probabilities,
            second=folder.second,
            grouped=folder.grouped and not self.snapshot.coupled,  # of a pair of epochs every shard is read
            probabilities=True,
            max_repeats=MAX_RATE,
            coupled=self.snapshot.coupled,
        )

    def passed_over(self) -> list[str]:
        """Returns the locations of training folders that have probabilities above 0, and yet so small that no epoch takes a sample."""
        training = [folder for folder in self.snapshot.training if not is_taken_from(self.snapshot, folder)]
        return [folder.location for folder in training if any(column.any() for column in _columns(folder))]

    def facts(self) -> dict[str, Any]:
        """Returns what `run.json` says of it."""
        return {"state": str(self.snapshot.state), "number": self.snapshot.number, "content_hash": self.snapshot.content_hash}


def identity(snapshot: Snapshot) -> str:
    """Returns what a plan calls a snapshot: its number and its content hash."""
    return f"{snapshot.number}:{snapshot.content_hash}"


def open_grown(location: Path, run: Path, *, replan: bool) -> Grown:
    """Returns the snapshot that a run in the folder `run` trains from, its probabilities compared with their hashes.

    Of a growth state that is the one of the plan that is recorded there, without a record or with `replan` the newest; a snapshot that
    is named itself is taken, whatever is recorded.

    Raises:
        UserError: when there is none, or its policy takes no sample.
        DataError: when it is damaged.
    """
    named = open_snapshot(location, verify=True)
    recorded = "" if replan or not (location / LATEST_NAME).exists() else _recorded(run)
    kept = named if recorded in ("", identity(named)) else _find(location, recorded, run, named.number)
    if not any(is_taken_from(kept, folder) for folder in kept.training):
        raise UserError(f"data.snapshot={location}: the policy of snapshot {kept.number} takes no sample; grow with another: bamboo grow")
    return Grown(kept, named.number)


def is_taken_from(snapshot: Snapshot, folder: TrainingFolder) -> bool:
    """Whether epochs take samples of a training folder; errors as `expected_samples`."""
    if snapshot.coupled and folder.second is None:
        return True  # whatever the first epoch passes over comes in the second
    return expected_samples(folder) > 0


def expected_samples(folder: TrainingFolder) -> int:
    """Returns the samples of a folder's epochs, of both its columns, each rounded: 0 where everything in it is passed over.

    Raises:
        DataError: when a column cannot be read.
    """
    return sum(round(float(np.sum(column, dtype=np.float64))) for column in _columns(folder))


def _columns(folder: TrainingFolder) -> Iterator[npt.NDArray[np.float32]]:
    for path in filter(None, (folder.probabilities, folder.second)):
        try:
            yield np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path}: not a readable .npy file: {' '.join(str(error).split())}") from None


def _recorded(run: Path) -> str:
    """Returns the snapshot of the plan version of a run that begins last; empty where there is none."""
    versions = read_history(run / "plan.json").versions
    return str(versions[-1].plan.get("snapshot", "")) if versions else ""


def _find(state: Path, recorded: str, run: Path, newest: int) -> Snapshot:
    number, _, content_hash = recorded.partition(":")
    folder = snapshot_folder(state, int(number))
    kept = open_snapshot(folder, verify=True) if folder.is_dir() else None
    if kept is None or kept.content_hash != content_hash:
        lost = "is not there any more" if kept is None else f"is another there now ({kept.content_hash[:16]}…)"
        remedy = f"put it back, or let snapshot {newest} join at the next epoch boundary with --sampling.replan"
        wanted = f"run.folder={run} goes on with snapshot {number} ({content_hash[:16]}…)"
        raise UserError(f"data.snapshot={state}: {wanted}, which {lost}; {remedy}")
    return kept
