"""Says what everyone is doing when nothing has moved for a given time."""

import dataclasses
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import ClassVar, TextIO

Clock = Callable[[], float]


@dataclasses.dataclass(frozen=True)
class Watch:
    """How the stream is watched: after `stall_s` seconds without a move it says so, then at doubled intervals; 0: never."""

    stall_s: float = 0.0
    rank: int = 0
    steps: bool = True
    """Whether the consumer's own work is watched, too; false: somebody else does it."""
    stream: TextIO | None = None
    """Where it is said; None: standard error, as it is then."""
    clock: Clock = time.monotonic


class Watchdog:
    """Watches a consumer that takes batches and works on them; a context manager.

    Between `waiting` and `delivered` the stream is at work, otherwise the consumer ("the training step"). While another stream is
    consumed inside the step, as in an evaluation, only that one's watchdog speaks; afterwards the outer one counts anew.
    """

    _open: ClassVar[list["Watchdog"]] = []

    def __init__(self, watch: Watch, workers: Callable[[], list[str]]) -> None:
        """`workers` returns a line for each worker; it is called only when something stalls."""
        self._watch, self._workers = watch, workers
        self._state = (watch.clock(), "the first batch is not asked for yet")
        self._watched, self._pause_s, self._due = self._state[0], watch.stall_s, self._state[0] + watch.stall_s
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Watchdog":
        if self._watch.stall_s:
            self._thread = threading.Thread(target=self._run, name="bamboo-watchdog", daemon=True)
            self._thread.start()
            self._open.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        if self._thread is not None:
            self._open.remove(self)
            if self._open:
                self._open[-1]._move(self._open[-1]._state[1])
            self._thread.join(1.0)

    def waiting(self, number: int) -> None:
        """Notes that batch `number` is waited for."""
        self._move(f"batch {number} has not come from the stream")

    def delivered(self, number: int) -> None:
        """Notes that the consumer has batch `number`."""
        self._move(f"the training step of batch {number} has not come back" if self._watch.steps else "")

    def _move(self, what: str) -> None:
        self._state = (self._watch.clock(), what)

    def check(self) -> str | None:
        """Returns what is to be said now, without the stacks: nothing while things move, or when it was said lately."""
        since, what = self._state
        now = self._watch.clock()
        if since != self._watched:  # it has moved since the last look
            self._watched, self._pause_s, self._due = since, self._watch.stall_s, since + self._watch.stall_s
        if not what or now < self._due or self._open[-1:] not in ([], [self]):
            return None
        self._pause_s *= 2
        self._due = now + self._pause_s
        return "\n".join([f"rank {self._watch.rank}: {what} for {now - since:.0f} s", *(f"  {line}" for line in self._workers())]) + "\n"

    def _run(self) -> None:
        while not self._stop.wait(min(self._watch.stall_s / 4, 5.0)):
            report = self.check()
            if report is not None:
                stream = self._watch.stream or sys.stderr
                stream.write(report + stacks())
                stream.flush()


def stacks() -> str:
    """Returns the Python stacks of all threads of this process, through memory: a disk may be what hangs."""
    with os.fdopen(os.memfd_create("bamboo-stacks"), "w+b") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().decode(errors="replace")
