"""What a store may be able to do beyond `ImageStore`, and what becomes of one that is not."""

import threading
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from ..images import Encoded, UnreadableImageError
from ..stores import CutShortError, ImageStore

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
class ShardedStore(Protocol):
    """A store of shards, which knows where a sample lies without touching the disk."""

    def shard_of(self, sample: int) -> tuple[int, str]:
        """Returns (ordinal, name) of the sample's shard."""


@runtime_checkable
class ExpectingStore(Protocol):
    """A store that fetches shards ahead of their use."""

    def expect(self, shards: Sequence[int]) -> None:
        """Takes the ordinals of the shards in use and of those to come, in that order; all others may go."""


class Expectation:
    """Tells a store which shards come next, when that changes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told = [-1]

    def tell(self, store: ImageStore, order: "Ahead", position: int, num_ahead: int) -> None:
        """Tells `store`, where it can listen, the shards that the plan uses from `position` on."""
        if not isinstance(store, ExpectingStore):
            return
        with self._lock:
            shards = order.shards_ahead(position, num_ahead)
            if shards != self._told:
                self._told = shards
                store.expect(shards)

    def __reduce__(self) -> tuple[Any, ...]:
        return Expectation, ()


class Ahead(Protocol):
    """A plan that knows the shards to come."""

    def shards_ahead(self, start: int, num_ahead: int) -> list[int]:
        """Returns the shards in use at a position, then the next `num_ahead` that come into use."""


def place_of(store: ImageStore, sample: int) -> str:
    """Returns `shard, sample number` for messages, without touching the disk, which may be what hangs."""
    if isinstance(store, ShardedStore):
        return f"{store.shard_of(sample)[1]}, sample {sample}"
    return f"sample {sample}"
