"""Several shard folders of the same classes as one pool: samples and shards are numbered through them, one folder after another."""

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from ..cli.errors import UserError
from .atomic import sha256_json
from .images import Encoded
from .shards import Shards


class JoinedShards:
    """Shard folders, opened, as one store; safe to share between processes and threads as its parts are.

    Raises:
        UserError: when their classes are not the same, in the same order.
    """

    def __init__(self, parts: Sequence[Shards]) -> None:
        self.parts = tuple(parts)
        for part in parts[1:]:
            if part.class_names != parts[0].class_names:
                counts = f"{len(part.class_names):,} classes, and {parts[0].folder} has {len(parts[0].class_names):,}"
                raise UserError(f"{part.folder}: {counts}, or their order differs; pack both with one --classes")
        self._first_samples = np.cumsum([0, *(len(part) for part in parts)])
        self._first_shards = np.cumsum([0, *(len(part.shard_counts) for part in parts)])

    def __len__(self) -> int:
        return int(self._first_samples[-1])

    @functools.cached_property
    def labels(self) -> npt.NDArray[np.integer]:
        """int[N] class ids (-1: none; the first label of a multi-label sample); of several folders a copy, 4 bytes a sample."""
        if len(self.parts) == 1:
            return self.parts[0].labels
        return np.concatenate([part.labels.astype(np.int32) for part in self.parts])

    def labels_of(self, samples: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Returns int64[B] class ids of some samples, from their folders' own columns; -1 for sample -1."""
        owners = self._first_samples.searchsorted(samples, side="right") - 1
        found = np.full(len(samples), -1, np.int64)
        for number in np.unique(owners[owners >= 0]).tolist():
            chosen = owners == number
            found[chosen] = self.parts[number].labels_of(samples[chosen] - self._first_samples[number])
        return found

    @property
    def class_names(self) -> list[str]:
        """Class names by class id."""
        return self.parts[0].class_names

    @functools.cached_property
    def data_hash(self) -> str:
        """Of a single folder its own; else hex SHA-256 over those of all."""
        return self.parts[0].data_hash if len(self.parts) == 1 else sha256_json([part.data_hash for part in self.parts])

    def load(self, sample: int) -> torch.Tensor:
        """Returns uint8[3, H, W], as displayed; raises UnreadableImageError or DataError."""
        return self.decode(self.encoded(sample))

    def encoded(self, sample: int) -> memoryview:
        """Returns the encoded image of a sample, good until this thread asks that folder for the next; raises DataError."""
        part, inside = self._part(sample)
        return part.encoded(inside)

    def decode(self, data: Encoded) -> torch.Tensor:
        """Returns uint8[3, H, W] in [0, 255], as displayed; raises UnreadableImageError."""
        return self.parts[0].decode(data)

    def name(self, sample: int) -> str:
        """Returns `shard:key` of a sample, with its folder where there are several."""
        part, inside = self._part(sample)
        return part.name(inside) if len(self.parts) == 1 else f"{part.folder}/{part.name(inside)}"

    def shard_of(self, sample: int) -> tuple[int, str]:
        """Returns (ordinal, name) of the shard that holds a sample."""
        number = int(self._first_samples.searchsorted(sample, side="right")) - 1
        ordinal, name = self.parts[number].shard_of(sample - int(self._first_samples[number]))
        return ordinal + int(self._first_shards[number]), name

    def expect(self, shards: Sequence[int]) -> None:
        """Tells each folder which of its shards are read now and next."""
        owners = self._first_shards.searchsorted(np.asarray(shards, np.int64), side="right") - 1
        for number, part in enumerate(self.parts):
            first = int(self._first_shards[number])
            part.expect([shard - first for shard, owner in zip(shards, owners.tolist(), strict=True) if owner == number])

    def _part(self, sample: int) -> tuple[Shards, int]:
        number = int(self._first_samples.searchsorted(sample, side="right")) - 1
        return self.parts[number], sample - int(self._first_samples[number])
