"""What a rank is doing: the operations of a run, marked where they happen, for those who watch them (a profile, time-outs)."""

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

DATA = "data"
"""Waiting for the loader's next batch."""
TRANSFER = "transfer"
"""Moving a batch to the device."""
FORWARD = "forward"
"""Normalising, mixing, the network's forward pass and the loss."""
BACKWARD = "backward"
"""The backward pass; engines exchange gradients in it."""
OPTIMIZER = "optimizer"
"""Clipping, the optimiser's step, clearing gradients."""
AVERAGE = "average"
"""The moving average of the weights."""
LOGGING = "logging"
"""Reading figures off the device, and writing a row."""
VOTE = "vote"
"""The boundary between two steps, where all ranks may agree to stop."""
EVALUATION = "evaluation"
"""Everything done to score the model."""
SAVING = "saving"
"""What training waits for when its state is saved."""


class Operations(Protocol):
    """Is told what happens on this rank, on the thread that trains."""

    def step(self, number: int) -> None:
        """Step `number`, counted from 0, begins."""

    def during(self, name: str) -> AbstractContextManager[None]:
        """Marks the block as operation `name`, one of the above or one inside of them: marks nest."""


class Unwatched:
    """Nobody wants to know."""

    _NOTHING = contextlib.nullcontext()

    def step(self, number: int) -> None:
        """Does nothing."""

    def during(self, name: str) -> AbstractContextManager[None]:
        """Marks nothing."""
        return self._NOTHING


class Watchers:
    """Several who watch; the first one's block is the outermost."""

    def __init__(self, watchers: Sequence[Operations]) -> None:
        self._watchers = watchers

    def step(self, number: int) -> None:
        """Tells each."""
        for watcher in self._watchers:
            watcher.step(number)

    @contextlib.contextmanager
    def during(self, name: str) -> Iterator[None]:
        """Marks the block with each."""
        with contextlib.ExitStack() as stack:
            for watcher in self._watchers:
                stack.enter_context(watcher.during(name))
            yield


def watched(watchers: Sequence[Operations]) -> Operations:
    """Returns the watchers as one; where there are none, one that costs next to nothing."""
    if not watchers:
        return Unwatched()
    return watchers[0] if len(watchers) == 1 else Watchers(watchers)
