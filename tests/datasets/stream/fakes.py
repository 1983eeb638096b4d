"""A small store, plan and view whose every pixel tells which visit it came from, and ways for samples to be bad."""

import dataclasses
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from bamboo.cli.errors import DataError
from bamboo.datasets.counters import key, permute
from bamboo.datasets.images import Encoded, UnreadableImageError
from bamboo.datasets.plan.order import Visits
from bamboo.datasets.stores import CutShortError
from bamboo.datasets.stream.batches import Batch

SHARD = 10  # samples a shard


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Samples of one colour each: red and green spell the sample's number."""

    num_samples: int = 40
    damaged: frozenset[int] = frozenset()
    cut_short: frozenset[int] = frozenset()
    missing_shard: int = -1
    hanging: int = -1
    """This sample is read only once `gate` is there."""
    gate: Path = Path("/nowhere")
    expected: list[list[int]] = dataclasses.field(default_factory=list, compare=False)

    class_names: list[str] = dataclasses.field(default_factory=lambda: ["even", "odd"])
    data_hash: str = "0" * 64

    def __len__(self) -> int:
        return self.num_samples

    @property
    def labels(self) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
        return np.arange(self.num_samples) % 2

    def encoded(self, sample: int) -> Encoded:
        while sample == self.hanging and not self.gate.exists():
            time.sleep(0.01)
        if sample // SHARD == self.missing_shard:
            raise DataError(f"{self.shard_of(sample)[1]}: is missing")
        if sample in self.cut_short:
            raise CutShortError(f"{self.shard_of(sample)[1]}: truncated: sample {sample}")
        return sample.to_bytes(2, "little")

    def decode(self, data: Encoded) -> torch.Tensor:
        low, high = bytes(data)
        if low + 256 * high in self.damaged:
            raise UnreadableImageError("damaged image")
        return torch.tensor([low, high, 255], dtype=torch.uint8)[:, None, None].expand(3, 4, 4)

    def load(self, sample: int) -> torch.Tensor:
        return self.decode(self.encoded(sample))

    def shard_of(self, sample: int) -> tuple[int, str]:
        return sample // SHARD, f"shard-{sample // SHARD}.tar"

    def name(self, sample: int) -> str:
        return f"{self.shard_of(sample)[1]}:{sample:04d}.jpg"


class Expecting(Pictures):
    """The same, with an ear for what comes."""

    def expect(self, shards: Sequence[int]) -> None:
        self.expected.append(list(shards))


@dataclasses.dataclass(frozen=True)
class Shuffled:
    """A permutation of the samples each epoch; shards are in use ten positions at a time, in turn."""

    num_samples: int = 40

    def take(self, start: int, stop: int) -> Visits:
        assert 0 <= start <= stop
        places = np.arange(start, stop)
        ids = np.empty(len(places), np.int64)
        keys = np.empty(len(places), np.uint64)
        for epoch in np.unique(places // self.num_samples).tolist():
            chosen = places // self.num_samples == epoch
            ids[chosen] = permute(places[chosen] % self.num_samples, self.num_samples, key(1, epoch))
            keys[chosen] = key(2, epoch)
        return Visits(ids, keys)

    def shards_in(self, first: int, last: int, num_ahead: int) -> list[int]:
        steps = range(first // SHARD, last // SHARD + 1 + num_ahead)
        return list(dict.fromkeys(step % (self.num_samples // SHARD) for step in steps))


class Stamp:
    """Puts the draw into the third channel: two views of a sample are equal where their draws are."""

    size, num_draws = 4, 1

    def __call__(self, image: torch.Tensor, draws: Sequence[float]) -> torch.Tensor:
        stamped = image.clone()
        stamped[2] = int(draws[0] * 256) if len(draws) else 0
        stamped[2, 0, 0] = int(draws[0] * 65536) % 256 if len(draws) else 0
        return stamped


class SlowStamp(Stamp):
    """The same, a millisecond later."""

    def __call__(self, image: torch.Tensor, draws: Sequence[float]) -> torch.Tensor:
        time.sleep(0.001)
        return super().__call__(image, draws)


Row = tuple[int, int, int, bytes]


def rows_of(batch: Batch) -> list[Row]:
    """Returns (place, id, label, pixels) of each row of a batch."""
    pixels = [image.numpy().tobytes() for image in batch.images]
    return list(zip(batch.places.tolist(), batch.ids.tolist(), batch.labels.tolist(), pixels, strict=True))


def loader_threads() -> list[threading.Thread]:
    """Returns the loader's and the watchdog's threads of this process."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("bamboo-") and thread.name != "bamboo-prefetch"]


def shared_memory(pid: int | str) -> list[str]:
    """Returns what a process has mapped or open of the shared memory file system."""
    descriptors = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
    return [line for line in (*Path(f"/proc/{pid}/maps").read_text().splitlines(), *descriptors) if "/dev/shm" in line]
