"""The order of copies to the device, with a copier that only takes notes."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from bamboo.datasets.stream.batches import Batch, TrainBatches
from bamboo.datasets.stream.feed import HOLD, ahead, feed, page_locked
from bamboo.datasets.stream.loader import Loader
from tests.datasets.stream.fakes import Pictures, Shuffled, Stamp, rows_of


class Notes:
    """A copier, its copies and the batches' source, all of which write down what happens."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def batches(self, count: int) -> Iterator[Batch]:
        for number in range(count):
            self.events.append(f"take {number}")
            column = torch.tensor([number])
            yield Batch(column, column, column, column, column)

    def start(self, batch: Batch) -> "NotedCopy":
        self.events.append(f"copy {int(batch.ids)}")
        return NotedCopy(self, batch)


class NotedCopy:
    def __init__(self, notes: Notes, batch: Batch) -> None:
        self._notes, self._batch = notes, batch

    def source_is_free(self) -> None:
        self._notes.events.append(f"free {int(self._batch.ids)}")

    def ready(self) -> Batch:
        self._notes.events.append(f"ready {int(self._batch.ids)}")
        return self._batch


def test_copies_run_one_ahead() -> None:
    """The events of three batches against the order written out."""
    notes = Notes()
    for batch in ahead(notes.batches(3), notes):
        notes.events.append(f"use {int(batch.ids)}")
    assert notes.events == [
        *("take 0", "copy 0", "take 1", "copy 1", "ready 0", "use 0", "free 0"),
        *("take 2", "copy 2", "ready 1", "use 1", "free 1", "ready 2", "use 2", "free 2"),
    ]


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_no_slot_is_written_before_its_copy_is_over(count: int) -> None:
    """Taking batch n has slot n - HOLD written: its copy must be over, and every copy is waited for and used once, in order."""
    notes = Notes()
    assert [int(batch.ids) for batch in ahead(notes.batches(count), notes)] == list(range(count))
    for number in range(HOLD, count):
        assert notes.events.index(f"free {number - HOLD}") < notes.events.index(f"take {number}")
    assert sorted(notes.events) == sorted(f"{what} {number}" for what in ("take", "copy", "ready", "free") for number in range(count))


def test_on_a_cpu_nothing_is_copied() -> None:
    """Batches as the loader gives them, in the ring's own memory."""
    with Loader(TrainBatches(Pictures(), Shuffled(), Stamp(), 10, 0, 1), range(4), workers=1, hold=HOLD) as loader:
        begin = loader.slots.data_ptr()
        made: list[int] = []
        for batch in feed(loader, torch.device("cpu")):
            assert begin <= batch.images.data_ptr() < begin + loader.slots.nbytes
            made += [row[1] for row in rows_of(batch)]
    assert made == Shuffled().take(0, 40).ids.tolist()


class Cudart:
    """CUDA's two functions, noted."""

    def __init__(self, code: int) -> None:
        self.code, self.calls = code, list[Any]()

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:  # noqa: N802 (CUDA's name)
        self.calls.append(("register", address, size, flags))
        return self.code

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802 (CUDA's name)
        self.calls.append(("unregister", address))
        return 0


def test_pages_are_locked_once_and_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Address and size of the memory, registered before and unregistered after the block, also after an error, when the device is idle."""
    cudart, memory = Cudart(0), torch.zeros(100, dtype=torch.uint8)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: cudart.calls.append("idle"))
    with pytest.raises(KeyError), page_locked(memory, cudart) as locked:
        assert locked
        raise KeyError
    assert cudart.calls == [("register", memory.data_ptr(), 100, 0), "idle", ("unregister", memory.data_ptr())]


def test_memory_that_cannot_be_locked_is_said() -> None:
    """A refusal: a warning, batches are pinned one by one instead, and nothing is unregistered."""
    cudart = Cudart(2)
    with pytest.warns(UserWarning, match="CUDA error 2"), page_locked(torch.zeros(100, dtype=torch.uint8), cudart) as locked:
        assert not locked
    assert len(cudart.calls) == 1
