"""The watchdog: when it speaks, and what it says."""

import io
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from bamboo.datasets.stream.batches import TrainBatches
from bamboo.datasets.stream.loader import load_batches
from bamboo.datasets.stream.watchdog import Watch, Watchdog
from tests.datasets.stream.fakes import Pictures, Shuffled, Stamp, loader_threads


class Hand:
    """A clock that is set by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_it_speaks_at_doubled_intervals() -> None:
    """A stall of 10 min with 10 s of patience: reports after 10, then 20, 40, … s more; a move starts anew."""
    clock = Hand()
    dog = Watchdog(Watch(stall_s=10, rank=3, clock=clock), lambda: ["worker 0: reads"])
    dog.waiting(17)
    spoken = []
    for second in range(600):
        clock.now = 1000.0 + second
        if (report := dog.check()) is not None:
            spoken.append(second)
            assert report == f"rank 3: batch 17 has not come from the stream for {second} s\n  worker 0: reads\n"
    assert spoken == [10, 30, 70, 150, 310]
    dog.delivered(17)
    assert dog.check() is None
    clock.now += 10
    assert "the training step of batch 17 has not come back for 10 s" in (dog.check() or "")
    clock.now += 19
    assert dog.check() is None


def test_it_is_silent_while_things_move() -> None:
    """A move every 9 s with 10 s of patience: nothing."""
    clock = Hand()
    dog = Watchdog(Watch(stall_s=10, clock=clock), list)
    for number in range(50):
        dog.waiting(number)
        clock.now += 5
        assert dog.check() is None
        dog.delivered(number)
        clock.now += 9
        assert dog.check() is None


def test_only_the_innermost_stream_speaks() -> None:
    """An evaluation of 50 s inside a step, each with 10 s of patience: the outer watchdog is silent, and counts anew afterwards."""
    clock = Hand()
    watch = Watch(stall_s=10, stream=io.StringIO(), clock=clock)
    with Watchdog(watch, list) as outer:
        outer.delivered(3)
        with Watchdog(watch, list) as inner:
            for number in range(5):
                inner.waiting(number)
                clock.now += 9
                inner.delivered(number)
                clock.now += 1
                assert (outer.check(), inner.check()) == (None, None)
            clock.now += 10
            assert outer.check() is None
            assert "batch 4" in (inner.check() or "")
        clock.now += 9
        assert outer.check() is None
        clock.now += 1
        assert "the training step of batch 3 has not come back for 10 s" in (outer.check() or "")


@pytest.mark.parametrize("kind", ["processes", "threads"])
def test_a_read_that_hangs_is_named(kind: Any, tmp_path: Path) -> None:
    """A sample that is read only after the report: rank, stage, shard, sample and this thread's stack are said; then all goes on."""
    said, gate = io.StringIO(), tmp_path / "gate"
    hanging = int(Shuffled().take(13, 14).ids[0])
    source = TrainBatches(Pictures(hanging=hanging, gate=gate), Shuffled(), Stamp(), 10, 0, 1)

    def open_gate() -> None:
        deadline = time.monotonic() + 10
        while "File" not in said.getvalue() and time.monotonic() < deadline:
            time.sleep(0.02)
        gate.touch()

    threading.Thread(target=open_gate).start()
    watch = Watch(stall_s=0.3, rank=5, stream=said)
    assert len(list(load_batches(source, range(4), workers=2, kind=kind, watch=watch))) == 4
    report = said.getvalue()
    assert report.startswith("rank 5: batch 1 has not come from the stream for 0 s\n")
    assert f"stage read, shard-{hanging // 10}.tar, sample {hanging}, for 0." in report
    assert report.count("waits for work") == 1
    assert "test_watchdog.py" in report, "the stack"


def test_a_training_step_that_hangs_is_named() -> None:
    """A consumer that does not come back: said in a few tenths of a second; the thread ends with the stream."""
    said = io.StringIO()
    source = TrainBatches(Pictures(), Shuffled(), Stamp(), 10, 0, 1)
    batches = load_batches(source, range(4), workers=0, watch=Watch(stall_s=0.1, stream=said))
    next(batches)
    time.sleep(0.5)
    batches.close()  # type: ignore[attr-defined]  # a generator, which Iterator does not say
    assert "rank 0: the training step of batch 0 has not come back for 0 s" in said.getvalue()
    assert "main thread: waits for work, for 0." in said.getvalue()
    assert not loader_threads()
