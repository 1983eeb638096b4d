"""Python's garbage collection on a schedule, so that all ranks pause for it at once instead of each for all, one after another."""

import gc
from types import TracebackType


class Collector:
    """Collects after every so many steps, and not in between; a context manager. 0: leaves Python its own schedule.

    What lives when the block is entered (modules, classes, the model) is put aside until it ends: it need not be looked at each time, so
    a collection takes milliseconds. Source of the idea: torchtitan, which does it for the same reason.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._was_enabled = False

    def __enter__(self) -> "Collector":
        if self._every:
            self._was_enabled = gc.isenabled()
            gc.disable()
            gc.collect()
            gc.freeze()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._every:
            gc.unfreeze()
            if self._was_enabled:
                gc.enable()

    def step(self, done: int) -> None:
        """Collects when it is time; `done` steps have been made."""
        if self._every and done % self._every == 0:
            gc.collect()

    def now(self) -> None:
        """Collects, as after an evaluation."""
        if self._every:
            gc.collect()
