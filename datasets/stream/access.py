"""What a store may be able to do beyond `ImageStore`, and what becomes of one that is not."""

import contextlib
import fcntl
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.context import get_spawning_popen
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch

from ..images import Encoded, UnreadableImageError
from ..stores import CutShortError, ImageStore
from .ring import SharedMemory

UNREADABLE = (UnreadableImageError, CutShortError)
"""What a store raises for one bad sample; anything else (a missing shard, a failed download) stops the stream under any policy."""


@runtime_checkable
class TwoStepStore(Protocol):
    """A store that reads and decodes in two steps, so that each can be timed. `load(s)` equals `decode(encoded(s))`."""

    def encoded(self, sample: int) -> Encoded:
        """Returns the encoded image, good until this thread asks for the next; raises DataError."""

    def decode(self, data: Encoded) -> torch.Tensor:
        """Returns uint8[3, H, W] in [0, 255]; raises UnreadableImageError."""


@runtime_checkable
class LabelledStore(Protocol):
    """A store that finds the labels of some samples without a column of all."""

    def labels_of(self, samples: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Returns int64[B] class ids, -1 for sample -1."""


def labels_of(store: ImageStore, samples: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Returns int64[B] class ids of some samples, -1 for sample -1."""
    if isinstance(store, LabelledStore):
        return store.labels_of(samples)
    return np.where(samples >= 0, store.labels[samples], -1).astype(np.int64)


@runtime_checkable
class ShardedStore(Protocol):
    """A store of shards, which knows where a sample lies without touching the disk."""

    def shard_of(self, sample: int) -> tuple[int, str]:
        """Returns (ordinal, name) of the sample's shard."""


@runtime_checkable
class ExpectingStore(Protocol):
    """A store that fetches shards ahead of their use."""

    def expect(self, shards: Sequence[int]) -> None:
        """Takes the ordinals of the shards in use and of those to come, in that order; all others may go."""


class _Furthest:
    """The batches that the furthest worker of any process spoke for, in memory shared with forked and spawned children.

    Its lock is the kernel's, on the open file, and held for a few instructions: a killed worker can block nobody.
    """

    def __init__(self) -> None:
        self._memory = SharedMemory(2 * np.dtype(np.int64).itemsize)

    def reach(self, numbers: range) -> range:
        """Returns the batches that were spoken for last where they hold the last of `numbers`, else `numbers`, which are so from now on."""
        with self._locked() as shared:
            spoken_for = range(shared[0], shared[1])
            if numbers[-1] in spoken_for:
                return spoken_for
            shared[0], shared[1] = numbers.start, numbers.stop
            return numbers

    def forget(self) -> None:
        """Has nobody spoken for anything."""
        with self._locked() as shared:
            shared[0] = shared[1] = 0

    @contextlib.contextmanager
    def _locked(self) -> Iterator["memoryview[int]"]:
        fcntl.lockf(self._memory.descriptor, fcntl.LOCK_EX)
        try:
            yield self._memory.bytes.cast("q")
        finally:
            fcntl.lockf(self._memory.descriptor, fcntl.LOCK_UN)


class _Told:
    """What the store was last told in this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.numbers = range(0)
        self.shards: list[int] | None = None


class Expectation:
    """Tells a store which shards come next, when that changes; of several workers, threads or processes, the furthest speaks for all.

    Stores in several processes share a cache, where what was used last stays longest. A worker that lags behind must not tell what it
    knows itself: to the cache, shards that the others are done with would then be newer than those they need.
    """

    def __init__(self, furthest: _Furthest | None = None) -> None:
        self._furthest = furthest or _Furthest()
        self._by_process: dict[int, _Told] = {}  # a forked child has a store that knows nothing, and a lock that nobody holds

    def tell(self, store: ImageStore, number: int, num_before: int, shards: Callable[[int, int], list[int]]) -> None:
        """Tells `store`, where it can listen, what the batches under way read, and what comes next.

        They are batch `number` and the `num_before` before it, which others may be making, unless a later one has spoken for it.

        Args:
            shards: returns the shards of a batch and as many before it, then those to come.
        """
        if not isinstance(store, ExpectingStore):
            return
        told, own = self._here(), range(number - num_before, number + 1)
        with told.lock:
            while (numbers := self._furthest.reach(own)) != told.numbers:  # again, where another process went on while we told
                told.numbers = numbers
                expected = shards(numbers[-1], len(numbers) - 1)
                if expected != told.shards:
                    told.shards = expected
                    store.expect(expected)

    def let_go(self, store: ImageStore) -> None:
        """Tells `store` that nothing is read any more, where it was told otherwise in this process."""
        told = self._here()
        self._furthest.forget()
        if isinstance(store, ExpectingStore) and told.lock.acquire(blocking=False):  # else a worker hangs in it, which was left behind
            with contextlib.ExitStack() as free:
                free.callback(told.lock.release)
                was_told, told.numbers, told.shards = bool(told.shards), range(0), None
                if was_told:
                    store.expect([])

    def _here(self) -> _Told:
        return self._by_process.setdefault(os.getpid(), _Told())

    def __reduce__(self) -> tuple[Any, ...]:
        """In a spawned child of ours the same stream; any other copy begins anew."""
        return Expectation, () if get_spawning_popen() is None else (self._furthest,)


def place_of(store: ImageStore, sample: int) -> str:
    """Returns `shard, sample number` for messages, without touching the disk, which may be what hangs."""
    if isinstance(store, ShardedStore):
        return f"{store.shard_of(sample)[1]}, sample {sample}"
    return f"sample {sample}"
