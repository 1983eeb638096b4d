"""Who makes batches ahead: what the three kinds of workers (processes, threads, the main thread) have in common."""

import dataclasses
import traceback
from typing import Protocol

from ...cli.errors import DataError, UserError
from .assemble import Columns
from .batches import BatchSource
from .ring import Ring
from .stages import Stage, StageClock

Outcome = Columns | Exception


@dataclasses.dataclass(frozen=True)
class Task:
    """The batches `numbers` of a source, to be made in turn into the slots of a ring, `ahead` of them while one is waited for."""

    source: BatchSource
    numbers: range
    ring: Ring
    ahead: int = 0

    def make(self, turn: int, clock: StageClock) -> Columns:
        """Makes the batch of that turn; raises what the source raises."""
        number = self.numbers[turn]
        images = self.ring.slot(turn, self.source.shape(number))
        columns = self.source.make(number, images, clock, number - self.numbers[max(turn - self.ahead, 0)])
        clock.enter(Stage.WAIT)
        return columns

    def outcome(self, turn: int, clock: StageClock) -> Outcome:
        """Returns the columns of the batch of that turn, or what its consumer shall raise."""
        try:
            return self.make(turn, clock)
        except BaseException as error:  # noqa: BLE001 (whatever it is, the consumer raises it: it would wait for ever for a dead thread)
            return _portable(error)


def _portable(error: BaseException) -> Exception:
    """Returns an exception that says the same and survives pickling, which subclasses with arguments of their own do not.

    A defect, and what is no Exception (a library's panic, sys.exit), crosses to the consumer as text, its traceback included.
    """
    for kind in (UserError, DataError):
        if isinstance(error, kind):
            return kind(str(error))
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return OSError(error.errno, error.strerror, str(error.filename))
    return RuntimeError(f"in a loader worker:\n{''.join(traceback.format_exception(error))}")


class Crew(Protocol):
    """Workers that make batches by turn; what is asked for in order is taken in that order."""

    def ask(self, turn: int) -> None:
        """Has the batch of that turn made some time."""

    def take(self, turn: int) -> Columns:
        """Waits for the batch of that turn; raises what made it impossible."""

    def describe(self, worker: int) -> str:
        """Returns who a worker is, and how it ended where it did."""

    def close(self) -> None:
        """Ends the workers: none begins another batch. One that hangs may be left behind, with the slot of its turn, which nobody has."""


class MainThread:
    """Makes each batch when it is taken."""

    def __init__(self, task: Task) -> None:
        self._task, self._clock = task, StageClock(task.ring.readings.row(0))

    def ask(self, turn: int) -> None:
        """Does nothing: there is nobody to make it ahead."""

    def take(self, turn: int) -> Columns:
        """Makes the batch of that turn."""
        return self._task.make(turn, self._clock)

    def describe(self, worker: int) -> str:
        """Returns who makes the batches."""
        return "main thread"

    def close(self) -> None:
        """Has nobody to end."""
