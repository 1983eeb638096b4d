"""Batches made ahead by processes or threads: order, ends of every kind, memory, and what they leave behind."""

import gc
import io
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from bamboo.cli.errors import DataError, UserError
from bamboo.datasets.augment.crops import TrainView
from bamboo.datasets.images import decode_rgb
from bamboo.datasets.stream.batches import TrainBatches
from bamboo.datasets.stream.crew import Task
from bamboo.datasets.stream.loader import Loader, WorkerKind, load_batches
from bamboo.datasets.stream.processes import Processes
from bamboo.datasets.stream.ring import Ring, _available_bytes
from tests.datasets.stream.fakes import Pictures, Shuffled, SlowStamp, Stamp, loader_threads, rows_of, shared_memory

KINDS: list[WorkerKind] = ["processes", "threads"]


def source(view: Any = None, **damage: Any) -> TrainBatches:
    return TrainBatches(Pictures(**damage), Shuffled(), view or Stamp(), 10, 0, 1)


def num_descriptors() -> int:
    """Returns how many files this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


class Broken(Stamp):
    """A view with a defect."""

    def __call__(self, image: torch.Tensor, draws: Any) -> torch.Tensor:
        raise ZeroDivisionError("a defect")


class Threaded(Stamp):
    """Writes into the picture how many threads torch would use."""

    def __call__(self, image: torch.Tensor, draws: Any) -> torch.Tensor:
        return torch.full((3, 4, 4), torch.get_num_threads(), dtype=torch.uint8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hold", [1, 2, 3])
def test_slots_hold_until_so_many_batches_more_are_taken(kind: Any, hold: int) -> None:
    """The last `hold` batches taken, after a pause in which workers run on: unchanged."""
    with Loader(source(), range(30), workers=2, kind=kind, hold=hold) as loader:
        held: list[Any] = []
        for batch in loader:
            held = [*held, (batch, rows_of(batch))][-hold:]
            time.sleep(0.005)
            assert all(rows_of(kept) == rows for kept, rows in held)
        assert len(loader.slots) == 4 + hold


@pytest.mark.parametrize("kind", KINDS)
def test_an_early_end_ends_the_workers(kind: Any) -> None:
    """The generator closed after one of many batches, and a loader never asked for one: no thread, process or descriptor is left."""
    gc.collect()
    before = num_descriptors()
    batches: Any = load_batches(source(SlowStamp()), range(1000), workers=2, kind=kind)
    next(batches)
    assert len(loader_threads() + multiprocessing.active_children()) == 2
    batches.close()
    with Loader(source(), range(1000), workers=2, kind=kind):
        assert len(loader_threads() + multiprocessing.active_children()) == 2
    assert not loader_threads()
    assert not multiprocessing.active_children()
    del batches
    assert num_descriptors() == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_defect_keeps_its_traceback(kind: Any) -> None:
    """An exception that is nobody's bad data: RuntimeError with the worker's traceback; and the workers are gone."""
    with pytest.raises(RuntimeError, match="ZeroDivisionError: a defect") as caught:
        list(load_batches(source(Broken()), range(3), workers=1, kind=kind))
    assert not isinstance(caught.value, DataError)
    assert "in __call__" in str(caught.value)
    assert not loader_threads() + multiprocessing.active_children()


class PanicError(BaseException):
    """What the panic of a decoder in another language becomes: no Exception."""


class Panicking(Stamp):
    """A view that panics."""

    def __call__(self, image: torch.Tensor, draws: Any) -> torch.Tensor:
        raise PanicError("a panic")


@pytest.mark.parametrize("kind", KINDS)
def test_a_panic_ends_the_stream(kind: Any) -> None:
    """A BaseException in a worker: RuntimeError with its traceback, where a thread that died would be waited for for ever."""

    def hangs(*_: object) -> None:
        raise TimeoutError("the stream hangs")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(20)
    try:
        with pytest.raises(RuntimeError, match="PanicError: a panic"):
            list(load_batches(source(Panicking()), range(3), workers=1, kind=kind))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_threads_that_hang_are_waited_for_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three threads in reads that hang, and a patience of half a second: the end comes after that half second, not three of them."""
    monkeypatch.setattr("bamboo.datasets.stream.threads._PATIENCE_S", 0.5)
    gate, hanging = tmp_path / "gate", int(Shuffled().take(0, 1).ids[0])
    stuck = TrainBatches(Pictures(hanging=hanging, gate=gate), Shuffled(), Stamp(), 40, 0, 1)  # a batch is an epoch
    with Loader(stuck, range(3), workers=3, prefetch=1, kind="threads") as loader:
        for turn in range(3):
            loader._crew.ask(turn)
        while any(loader.readings.moment(worker).sample != hanging for worker in range(3)):
            time.sleep(0.01)
        started = time.monotonic()
    assert time.monotonic() - started < 1.2
    gate.touch()
    deadline = time.monotonic() + 10
    while loader_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not loader_threads(), "once they can, they end"


@pytest.mark.parametrize("kind", KINDS)
def test_bad_data_comes_at_its_batch(kind: Any) -> None:
    """A bad sample of batch 2, found while batch 0 is in use: batches 0 and 1 come first, then DataError without a traceback."""
    bad = int(Shuffled().take(25, 26).ids[0])
    batches = load_batches(source(damaged=frozenset({bad})), range(4), workers=3, kind=kind)
    assert [len(next(batches).labels) for _ in range(2)] == [10, 10]
    with pytest.raises(DataError, match=f"{bad:04d}") as caught:
        next(batches)
    assert "Traceback" not in str(caught.value)


class NoRoomError(UserError):
    """An error that cannot be pickled: its class takes more than its message."""

    def __init__(self, message: str, needed_bytes: int) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes


class Raising(Stamp):
    """A view that raises one of several errors."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __call__(self, image: torch.Tensor, draws: Any) -> torch.Tensor:
        raise self._error


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [NoRoomError("cache: too small", 7), FileNotFoundError(2, "No such file", "shard-3.tar")])
def test_an_error_keeps_its_kind_and_message(kind: WorkerKind, error: Exception) -> None:
    """A UserError of a class that does not survive pickling, and an OSError with its file: the same at the consumer."""
    with pytest.raises(FileNotFoundError if isinstance(error, OSError) else UserError) as caught:
        list(load_batches(source(Raising(error)), range(3), workers=1, kind=kind))
    assert str(caught.value) == str(error)


def test_a_killed_worker_is_named() -> None:
    """SIGKILL of a worker in the middle of a read: DataError with worker, process, signal and where it was; the others end."""
    hanging = int(Shuffled().take(13, 14).ids[0])
    batches = load_batches(source(hanging=hanging), range(100), workers=2)
    next(batches)
    victim = next(child for child in multiprocessing.active_children() if child.name == "bamboo-loader-1")
    pid = victim.pid or 0
    time.sleep(0.2)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(DataError) as caught:
        list(batches)
    assert f"loader worker 1 (process {pid}) was ended by SIGKILL in the stage read of shard-{hanging // 10}.tar" in str(caught.value)
    assert "data.workers" in str(caught.value)
    assert not multiprocessing.active_children()


def test_a_jobs_signals_are_the_main_processs_business() -> None:
    """SIGTERM, SIGINT and SIGUSR1 to a worker, as a scheduler sends them to all processes of a job: it works on."""
    batches = load_batches(source(), range(20), workers=1)
    next(batches)
    (worker,) = multiprocessing.active_children()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        os.kill(worker.pid or 0, number)
    assert len(list(batches)) == 19


def test_threads_leave_torchs_threads_alone() -> None:
    """Loader threads use one intra-op thread each; this one keeps its number."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        (batch,) = load_batches(source(Threaded()), range(1), workers=1, kind="threads")
        assert set(batch.images.flatten().tolist()) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_threads_let_python_run_meanwhile() -> None:
    """The longest pause of this thread while another decodes and crops a large JPEG, against how long that takes: a small part of it."""
    buffer = io.BytesIO()
    Image.effect_noise((3000, 2000), 50).convert("RGB").save(buffer, "JPEG", quality=90)
    view = TrainView(256, scale=(0.9, 1.0), ratio=(1.4, 1.6), flip=0.5, interpolation="bicubic")
    shares = []
    for _ in range(5):
        thread = threading.Thread(target=lambda: view(decode_rgb(buffer.getvalue()), [0.5] * view.num_draws))
        started = last = time.perf_counter()
        longest = 0.0
        thread.start()
        while thread.is_alive():
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
        shares.append(longest / (last - started))
    assert min(shares) < 0.4


@pytest.mark.parametrize("kind", KINDS)
def test_a_fork_that_drops_the_stream_harms_nobody(kind: Any) -> None:
    """A forked child that closes its copy of the generator: the stream here goes on."""
    batches: Any = load_batches(source(), range(20), workers=1, kind=kind)
    next(batches)
    child = os.fork()
    if not child:
        batches.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert len(list(batches)) == 19


def test_a_stream_inside_a_stream() -> None:
    """Evaluation in the middle of training, each with workers: both go on."""
    outer = load_batches(source(), range(6), workers=2)
    for _, kind in zip(outer, KINDS * 3, strict=True):
        assert len(list(load_batches(source(), range(3), workers=2, kind=kind))) == 3


@pytest.mark.slow
def test_spawned_workers_make_the_same() -> None:
    """Workers that share nothing by fork (task, ring and clocks pickled) against the main thread's batches."""
    expected = [rows_of(batch) for batch in load_batches(source(), range(4), workers=0)]
    memory = Ring(source().shape(0), 4, 2)
    crew = Processes(Task(source(), range(4), memory), 2, multiprocessing.get_context("spawn"))
    for turn in range(4):
        crew.ask(turn)
    made = [(crew.take(turn), memory.slot(turn, source().shape(turn))) for turn in range(4)]
    assert [[image.numpy().tobytes() for image in slot] for _, slot in made] == [[row[3] for row in rows] for rows in expected]
    assert [columns.ids.tolist() for columns, _ in made] == [[row[1] for row in rows] for rows in expected]
    assert memory.readings.moment(1).since_ns
    crew.close()


def test_too_little_memory_is_said_before_anything_starts() -> None:
    """A ring beyond the machine's memory: UserError with the bytes and the settings that make it smaller."""
    with pytest.raises(UserError, match=r"GB|TB|PB") as caught:
        next(iter(load_batches(source(), range(10), workers=4, prefetch=10**12)))
    assert all(name in str(caught.value) for name in ("data.workers", "data.prefetch", "batch"))
    assert not multiprocessing.active_children()


def test_memory_that_runs_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's refusal while pages are taken: UserError with its reason; the descriptor is closed."""

    def refuse(descriptor: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    batches, before = source(), num_descriptors()
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(UserError, match="No space left on device"):
        next(iter(load_batches(batches, range(10), workers=1)))
    assert num_descriptors() == before


@pytest.mark.parametrize(
    ("folder", "names", "cached"),
    [
        (".", ("memory.max", "memory.current"), "active_file"),
        ("memory", ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_inactive_file"),
    ],
)
def test_memory_that_the_job_has_taken_is_not_left(tmp_path: Path, folder: str, names: tuple[str, str], cached: str) -> None:
    """A control group of either version with 10 MB, 7 of them in use, 2 of them for cached files: 5 are left; else the machine's."""
    machine = _available_bytes(tmp_path)
    assert machine > 10**7
    (tmp_path / folder).mkdir(exist_ok=True)
    for name, text in zip((*names, "memory.stat"), ("10000000", "7000000", f"anon 5000000\n{cached} 2000000\n"), strict=True):
        (tmp_path / folder / name).write_text(text)
    assert _available_bytes(tmp_path) == 5_000_000
    (tmp_path / folder / names[0]).write_text("max\n")
    assert _available_bytes(tmp_path) > 10**7


def test_nothing_lies_in_dev_shm() -> None:
    """What this process and its workers have mapped or open while the stream runs: nothing more there than before, whatever its size."""
    before = set(shared_memory("self"))
    batches = load_batches(source(), range(10), workers=2)
    next(batches)
    children = [child.pid or 0 for child in multiprocessing.active_children()]
    assert children
    assert not [line for pid in ("self", *children) for line in shared_memory(pid) if line not in before]


@pytest.mark.parametrize("kind", ["processes", "threads"])
def test_a_stream_inside_inference_mode(kind: Any) -> None:
    """Begun and read under torch.inference_mode, as an evaluation does: the batches of a stream outside it."""
    expected = [rows_of(batch) for batch in load_batches(source(), range(4), workers=0)]
    with torch.inference_mode():
        made = [rows_of(batch) for batch in load_batches(source(), range(4), workers=2, kind=kind)]
    assert made == expected
