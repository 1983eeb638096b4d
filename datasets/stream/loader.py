"""Batches by number, made ahead by worker processes or threads into a ring of memory, and handed over in order."""

import os
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Literal

import torch

from .batches import Batch, BatchSource
from .crew import Crew, MainThread, Task
from .processes import Processes
from .ring import Ring
from .stages import Readings, Stage
from .threads import Threads
from .watchdog import Watch, Watchdog

WorkerKind = Literal["processes", "threads"]


def load_batches(
    source: BatchSource,
    numbers: range,
    *,
    workers: int,
    prefetch: int = 2,
    kind: WorkerKind = "processes",
    pin: bool = False,
    watch: Watch | None = None,
) -> Iterator[Batch]:
    """Yields the batches `numbers` of a source in that order, made by `workers` processes or threads (0: by this one).

    A batch's images hold until the next batch is taken, unless they are pinned, which copies them.

    Raises:
        DataError: naming shard and sample when one cannot be read, or the worker and the signal when one is killed.
        UserError: when there is no memory for the batches made ahead.
    """
    with Loader(source, numbers, workers=workers, prefetch=prefetch, kind=kind, watch=watch) as loader:
        for batch in loader:
            yield batch._replace(images=batch.images.pin_memory()) if pin else batch


class Loader:
    """The batches `numbers` of a source, in order: a context manager, to be iterated once.

    Workers write into a ring that is laid out once: a batch costs neither new pages nor a copy. Its images hold until `hold` more
    batches have been taken.
    """

    def __init__(
        self,
        source: BatchSource,
        numbers: range,
        *,
        workers: int,
        prefetch: int = 2,
        kind: WorkerKind = "processes",
        hold: int = 1,
        watch: Watch | None = None,
    ) -> None:
        """Lays out the ring and starts the workers.

        Raises:
            UserError: when there is no memory for the batches made ahead.
        """
        self.waited_s = 0.0
        """Seconds for which batches were waited for."""
        self._source, self._numbers, self._ahead, self._owner = source, numbers, workers * prefetch, os.getpid()
        # When batch n is taken, batch n + ahead is asked for; with `hold` slots more than that, it goes where batch n - hold lay.
        self._ring = Ring(source.largest(numbers), self._ahead + hold, max(workers, 1))
        task = Task(source, numbers, self._ring, self._ahead)
        self._crew = _hire(task, workers, kind)
        self._watchdog = Watchdog(watch or Watch(), self._describe)

    @property
    def slots(self) -> torch.Tensor:
        """uint8[n, B, S, S, 3], the memory in which the images of all batches lie; a smaller batch lies at the start of its slot."""
        return self._ring.slots

    @property
    def readings(self) -> Readings:
        """The stage clocks of the workers."""
        return self._ring.readings

    def __enter__(self) -> "Loader":
        self._watchdog.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if os.getpid() == self._owner:  # a fork that drops its copy of us ends nobody
            self._watchdog.__exit__(kind, error, trace)
            self._crew.close()
            self._source.let_go()
        del self._watchdog, self._crew  # they know us: a circle would keep the ring in memory until the next collection

    def __iter__(self) -> Iterator[Batch]:
        turns = len(self._numbers)
        for turn in range(min(self._ahead, turns)):
            self._crew.ask(turn)
        for turn, number in enumerate(self._numbers):
            if turn + self._ahead < turns:
                self._crew.ask(turn + self._ahead)
            self._watchdog.waiting(number)
            started = time.perf_counter()
            made = self._crew.take(turn)
            self.waited_s += time.perf_counter() - started
            self._watchdog.delivered(number)
            labels, ids, valid, places = (torch.from_numpy(column) for column in made[:4])
            weights = None if made.weights is None else torch.from_numpy(made.weights)
            yield Batch(self._ring.slot(turn, self._source.shape(number)), labels, ids, valid, places, made.replaced, weights)

    def _describe(self) -> list[str]:
        return [self._describe_worker(worker) for worker in range(self.readings.num_workers)]

    def _describe_worker(self, worker: int) -> str:
        stage, sample, since_ns = self.readings.moment(worker)
        what = "waits for work" if stage == Stage.WAIT else f"stage {stage.name.lower()}"
        of = f", {self._source.place_of(sample)}" if sample >= 0 else ""
        lasting = f", for {(time.monotonic_ns() - since_ns) / 1e9:.1f} s" if since_ns else ", not started"
        return f"{self._crew.describe(worker)}: {what}{of}{lasting}"


def _hire(task: Task, workers: int, kind: WorkerKind) -> Crew:
    if workers == 0:
        return MainThread(task)
    return Processes(task, workers) if kind == "processes" else Threads(task, workers)
