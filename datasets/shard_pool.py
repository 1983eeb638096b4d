"""One shard is one unit of work: many of them over a pool of processes, with progress, early end and no orphans."""

import contextlib
import ctypes
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import torch

from ..cli.errors import DataError
from ..cli.progress import Progress

T = TypeVar("T")
R = TypeVar("R")

Tick = Callable[[int], None]

_POLL_S = 0.3


class StoppedError(RuntimeError):
    """Raised by a tick in a worker: another shard failed, or the command was interrupted."""


def available_processes() -> int:
    """Returns the number of CPU cores this process may use."""
    return len(os.sched_getaffinity(0))


def map_shards(work: Callable[[T, Tick], R], tasks: Sequence[T], processes: int, progress: Progress) -> Iterator[R]:
    """Yields `work(task, tick)` for every task, in the order in which they end; `work` calls `tick(n)` for each n samples done.

    Each worker process uses one torch thread. When a task fails, or the caller stops iterating, the others end at their next
    tick. When this process is killed its workers end too. With one process or task everything runs in this process.

    Raises:
        DataError: when a worker process is killed; and whatever `work` raises.
    """
    processes = min(processes, len(tasks))
    if processes <= 1:
        with _one_torch_thread():
            yield from (work(task, progress.advance) for task in tasks)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([work.__module__])
    counter, stop = context.Value(ctypes.c_int64, 0), context.Event()
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker, initargs=(counter, stop)) as pool:
        try:
            pending, counted = {pool.submit(_run, work, task) for task in tasks}, 0
            while pending:
                done, pending = wait(pending, timeout=_POLL_S, return_when=FIRST_COMPLETED)
                total = counter.value
                progress.advance(total - counted)
                counted = total
                yield from (future.result() for future in done)
        except BrokenProcessPool:
            raise DataError("a worker process was killed (out of memory?); run the same command again, or with fewer --processes") from None
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


class _Worker:
    """What the initializer leaves in a worker process: the shared sample counter and the signal to stop."""

    counter: Any
    stop: Any


def _start_worker(counter: Any, stop: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    torch.set_num_threads(1)
    _Worker.counter, _Worker.stop = counter, stop
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in a child only"
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _run(work: Callable[[T, Tick], R], task: T) -> R:
    return work(task, _tick)


def _tick(count: int) -> None:
    if _Worker.stop.is_set():
        raise StoppedError
    with _Worker.counter.get_lock():
        _Worker.counter.value += count


@contextlib.contextmanager
def _one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
