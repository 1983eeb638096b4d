"""Batches made ahead by worker processes, which end with this one however it ends."""

import contextlib
import gc
import multiprocessing
import os
import signal
import threading
import time
from multiprocessing import connection, util
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess

import torch

from ...cli.errors import DataError
from .assemble import Columns
from .crew import Outcome, Task
from .stages import StageClock

_LOOK_EVERY_S = 0.5
_PATIENCE_S = 5.0  # for a killed worker that the kernel does not let go, as in a read of a network disk that is away
_PARENTS_BUSINESS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Processes:
    """`num_workers` processes, each with a pipe of its own: worker w makes the turns w, w + W, w + 2W, …

    Columns cross the pipe, pixels lie in the ring. No queue, lock or semaphore is shared, so a killed worker can block nobody.
    """

    def __init__(self, task: Task, num_workers: int, context: BaseContext | None = None) -> None:
        self._task = task
        context = context or multiprocessing.get_context()
        self._pipes: list[connection.Connection] = []
        self._workers: list[BaseProcess] = []
        # Before the interpreter, at its end, asks daemons politely and waits: ours do not listen to SIGTERM.
        self._end = util.Finalize(self, _kill, args=(self._workers, self._pipes), exitpriority=100)
        method = context.get_start_method()
        parent = 0 if method == "forkserver" else os.getpid()
        for worker in range(num_workers):
            ours, theirs = context.Pipe()
            self._pipes.append(ours)
            inherited = tuple(self._pipes) if method == "fork" else ()
            process = context.Process(  # type: ignore[attr-defined]  # typeshed has it on the concrete contexts only
                target=_work, args=(task, worker, theirs, parent, inherited), name=f"bamboo-loader-{worker}", daemon=True
            )
            process.start()
            theirs.close()
            self._workers.append(process)

    def ask(self, turn: int) -> None:
        """Has the batch of that turn made some time."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the worker is dead; whoever takes the batch is told
            self._pipes[turn % len(self._pipes)].send(turn)

    def take(self, turn: int) -> Columns:
        """Waits for the batch of that turn; raises what made it impossible.

        Raises:
            DataError: naming the worker and the signal, when it was killed.
        """
        worker = turn % len(self._pipes)
        pipe = self._pipes[worker]
        connection.wait([pipe, self._workers[worker].sentinel])
        try:
            outcome: Outcome = pipe.recv() if pipe.poll() else self._died(worker)
        except (EOFError, OSError):  # the end of the pipe, or one in the middle of a message
            outcome = self._died(worker)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _died(self, worker: int) -> DataError:
        self._workers[worker].join(_LOOK_EVERY_S)
        stage, sample, _ = self._task.ring.readings.moment(worker)
        at = f" in the stage {stage.name.lower()} of {self._task.source.place_of(sample)}" if sample >= 0 else ""
        remedy = "if the machine ran out of memory, use fewer data.workers or a smaller data.prefetch"
        return DataError(f"{self.describe(worker)}{at}; {remedy}")

    def describe(self, worker: int) -> str:
        """Returns who a worker is, and how it ended where it did."""
        process = self._workers[worker]
        who = f"loader worker {worker} (process {process.pid})"
        code = process.exitcode
        if code is None:
            return who
        return f"{who} was ended by {signal.Signals(-code).name}" if code < 0 else f"{who} ended with exit code {code}"

    def close(self) -> None:
        """Ends the workers at once: they hold nothing that an end could hurt."""
        self._end()


def _kill(workers: list[BaseProcess], pipes: list[connection.Connection]) -> None:
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join(_PATIENCE_S)
        if worker.exitcode is not None:
            worker.close()
    for pipe in pipes:
        pipe.close()


def _work(task: Task, worker: int, pipe: connection.Connection, parent: int, inherited: tuple[connection.Connection, ...]) -> None:
    """Makes the batches whose turns come through the pipe, for as long as the process at its other end lives.

    Args:
        parent: id of that process, where this one is its child.
        inherited: the other ends, of which a fork has copies; while one is open, nobody sees that the process has ended.
    """
    for number in _PARENTS_BUSINESS:  # a job's signals go to all its processes; what they mean, the main process decides
        signal.signal(number, signal.SIG_IGN)
    gc.enable()  # a fork of a trainer that collects on its own schedule would never
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    for other_end in inherited:
        other_end.close()
    torch.set_num_threads(1)
    clock = StageClock(task.ring.readings.row(worker))
    while True:
        try:
            turn: int = pipe.recv()
            pipe.send(task.outcome(turn, clock))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return


def _follow(parent: int) -> None:
    """Ends this process when the one that wanted it is gone, also in the middle of a read that hangs, and before it has begun."""
    while _lives(parent):
        time.sleep(_LOOK_EVERY_S)
    os._exit(1)


def _lives(parent: int) -> bool:
    """Whether the process lives that this one works for; 0: it is no child of it, but of a server of forks."""
    if parent:
        return os.getppid() == parent
    wanted_by = multiprocessing.parent_process()
    return wanted_by is not None and wanted_by.is_alive()
