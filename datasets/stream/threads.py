"""Batches made ahead by threads of this process. Reading, decoding and cropping release the interpreter's lock."""

import queue
import threading
import time

import torch

from .assemble import Columns
from .crew import Outcome, Task
from .stages import StageClock

_PATIENCE_S = 5.0  # for all threads that are in the middle of a batch when the stream ends


class Threads:
    """`num_workers` threads that take turns from one queue; whichever is free makes the next batch."""

    def __init__(self, task: Task, num_workers: int) -> None:
        self._task = task
        self._turns: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._outcomes: dict[int, Outcome] = {}
        self._changed = threading.Condition()
        self._ended = False
        ready = threading.Barrier(num_workers + 1)
        self._threads = [
            threading.Thread(target=self._work, args=(worker, ready), name=f"bamboo-loader-{worker}", daemon=True)
            for worker in range(num_workers)
        ]
        intra_op_threads = torch.get_num_threads()
        for thread in self._threads:
            thread.start()
        ready.wait()
        torch.set_num_threads(intra_op_threads)  # OpenMP counts per thread, MKL per process: the latter is put right again

    def _work(self, worker: int, ready: threading.Barrier) -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # a thread takes over torch's global number at its first question: here, while that is 1
        clock = StageClock(self._task.ring.readings.row(worker))
        ready.wait()
        while (turn := self._turns.get()) is not None and not self._ended:
            outcome = self._task.outcome(turn, clock)
            with self._changed:
                self._outcomes[turn] = outcome
                self._changed.notify_all()

    def ask(self, turn: int) -> None:
        """Has the batch of that turn made some time."""
        self._turns.put(turn)

    def take(self, turn: int) -> Columns:
        """Waits for the batch of that turn; raises what made it impossible."""
        with self._changed:
            self._changed.wait_for(lambda: turn in self._outcomes)
            outcome = self._outcomes.pop(turn)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def describe(self, worker: int) -> str:
        """Returns who a worker is."""
        return f"thread {self._threads[worker].name}"

    def close(self) -> None:
        """Ends the threads. Those that hang in a read are left behind; they end after it, or with the process."""
        self._ended = True
        for _ in self._threads:
            self._turns.put(None)
        deadline = time.monotonic() + _PATIENCE_S
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0))
