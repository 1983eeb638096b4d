"""What a store is told of the shards to come: of everything under way, never backwards, anew after a fork, and when all is over."""

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Sequence
from multiprocessing import connection
from pathlib import Path
from typing import Any

import pytest

from bamboo.datasets.augment.crops import EvalView
from bamboo.datasets.shards import Shards
from bamboo.datasets.stream.access import Expectation
from bamboo.datasets.stream.batches import EvalBatches, TrainBatches
from bamboo.datasets.stream.loader import load_batches
from tests.datasets.stream.fakes import Expecting, Shuffled, Stamp


class Noting:
    """Notes what `shards` is asked, and answers with the number of the batch it is asked for."""

    def __init__(self, store: Any) -> None:
        self._store, self._expectation = store, Expectation()

    def tell(self, number: int, num_before: int) -> None:
        self._expectation.tell(self._store, number, num_before, lambda furthest, num_before: [furthest])

    def let_go(self) -> None:
        self._expectation.let_go(self._store)

    @property
    def expected(self) -> list[list[int]]:
        return self._store.expected


def test_the_furthest_worker_speaks_for_all() -> None:
    """Batches 3 and 2, made beside batch 4, change nothing; 5 does, and so does a stream that begins anew."""
    store = Expecting()
    noting = Noting(store)
    for number, num_before in ((4, 2), (3, 2), (2, 2), (4, 2), (5, 2), (4, 2), (0, 0), (1, 1)):
        noting.tell(number, num_before)
    assert store.expected == [[4], [5], [0], [1]]
    noting.let_go()
    noting.let_go()
    assert store.expected[4:] == [[]], "once"
    noting.tell(1, 1)
    assert store.expected[5:] == [[1]]


def tell_and_answer(noting: Noting, steps: list[tuple[int, int]], answer: connection.Connection) -> None:
    """In a child: tells those batches, and sends what its store was told."""
    for number, num_before in steps:
        noting.tell(number, num_before)
    answer.send(noting.expected)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_furthest_process_speaks_for_all(method: str) -> None:
    """Where this process told of batch 4, a child at 3 tells its own store of 4, then at 5 of 5, which this one, at 4, tells too."""
    noting = Noting(Expecting())
    noting.tell(4, 2)
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    child = context.Process(target=tell_and_answer, args=(noting, [(3, 2), (4, 2), (5, 2), (3, 2)], theirs))  # type: ignore[attr-defined]  # as in processes.py
    child.start()
    assert ours.recv() == [[4], [4], [5]], "what its copy of the store was told here, then what it was told there"
    child.join()
    noting.tell(4, 2)
    assert noting.expected == [[4], [5]]
    noting.let_go()
    noting.tell(3, 2)
    assert noting.expected == [[4], [5], [], [3]], "the next stream begins anew"


def test_what_others_went_on_to_meanwhile_is_told_at_once() -> None:
    """While this process tells of batch 1 another begins batch 2: it tells of 2 next, so that what is done with is not the newest."""
    store, expectation = Expecting(), Expectation()

    def asked(number: int, num_before: int) -> list[int]:
        if number == 1:
            child = os.fork()
            if not child:
                signal.alarm(5)
                expectation.tell(store, 2, 1, asked)
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        return [number]

    expectation.tell(store, 1, 1, asked)
    assert store.expected == [[1], [2]]


def test_a_copy_is_a_stream_of_its_own() -> None:
    """A pickled and unpickled expectation, where no child is being spawned, knows nothing of what was told."""
    noting = Noting(Expecting())
    noting.tell(4, 2)
    copy = pickle.loads(pickle.dumps(noting))
    copy.tell(3, 2)
    assert copy.expected[1:] == [[3]]


def test_threads_do_not_take_turns_in_going_back() -> None:
    """Eight threads through 36 shards of a batch each: what is in use first only ever moves on."""
    store = Expecting(400)
    source = TrainBatches(store, Shuffled(400), Stamp(), 10, 0, 1, num_ahead=1)
    for _ in load_batches(source, range(36), workers=8, kind="threads"):
        pass
    firsts = [shards[0] for shards in store.expected[:-1]]
    assert firsts == sorted(firsts)
    assert len(firsts) <= 36
    assert max(len(shards) for shards in store.expected) == 16 + 1 + 1, "sixteen batches under way, the one that is waited for, one ahead"


@pytest.mark.parametrize(("kind", "workers"), [("threads", 2), ("threads", 0), ("processes", 2)])
def test_the_end_lets_go(kind: Any, workers: int) -> None:
    """After the last batch, and after an early end, a store of this process expects nothing; one that was told nothing stays so."""
    for stop in (4, 2):
        store = Expecting()
        batches: Any = load_batches(TrainBatches(store, Shuffled(), Stamp(), 10, 0, 1), range(4), workers=workers, kind=kind)
        for _ in range(stop):
            next(batches)
        batches.close() if stop == 2 else list(batches)
        assert store.expected[-1:] == ([[]] if kind == "threads" else [])


def in_a_fork(noting: Noting) -> int:
    """Returns how a forked child ended that tells what the parent may have told: 0, or the alarm that ended it."""
    child = os.fork()
    if not child:
        signal.alarm(5)
        noting.tell(1, 0)
        os._exit(0 if noting._store.expected[-1:] == [[1]] else 3)
    return os.waitpid(child, 0)[1]


class Slow(Expecting):
    """A store that takes its time to listen."""

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "heard", threading.Event())
        object.__setattr__(self, "go_on", threading.Event())

    def expect(self, shards: Sequence[int]) -> None:
        self.heard.set()  # type: ignore[attr-defined]  # the base class is frozen
        self.go_on.wait(20)  # type: ignore[attr-defined]  # the base class is frozen
        super().expect(shards)


def test_a_fork_in_the_middle_of_telling() -> None:
    """A child forked while a thread of the parent tells: it tells its own store at once."""
    noting = Noting(store := Slow())
    thread = threading.Thread(target=noting.tell, args=(1, 0))
    thread.start()
    store.heard.wait(20)  # type: ignore[attr-defined]  # the base class is frozen
    try:
        child = os.fork()
        if not child:
            signal.alarm(5)
            store.go_on.set()  # type: ignore[attr-defined]  # the base class is frozen
            noting.tell(1, 0)
            os._exit(0 if store.expected == [[1]] else 3)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        store.go_on.set()  # type: ignore[attr-defined]  # the base class is frozen
        thread.join()


def test_a_fork_is_told_anew() -> None:
    """What the parent's store was told, a child's store, which begins anew, is told again."""
    store = Expecting()
    noting = Noting(store)
    noting.tell(1, 0)
    store.expected.append([7])
    assert in_a_fork(noting) == 0


@pytest.mark.parametrize(
    ("rank", "expected"),
    [(0, [[0, 2], [2, 4], [4, 6], [6]]), (1, [[1, 3], [3, 5], [5, 7], [7]])],
)
def test_evaluation_says_what_comes(rank: int, expected: list[list[int]]) -> None:
    """Shards of ten, batches of ten on two ranks: each rank names the shards of its own batches, one ahead, and nothing at the end."""
    store = Expecting(75)
    batches = EvalBatches(store, Stamp(), 10, rank, 2, num_ahead=1)
    for _ in load_batches(batches, range(len(batches)), workers=0):
        pass
    assert store.expected == [*expected, []]


def test_evaluation_keeps_what_is_under_way() -> None:
    """Batches of four in shards of ten: those of the two batches before stay in the list; a batch may lie in two shards."""
    batches = EvalBatches(Expecting(40), Stamp(), 4, num_ahead=2)
    assert batches._shards(2, 0) == [0, 1, 2, 3]
    assert batches._shards(5, 2) == [1, 2, 3]
    assert batches._shards(3, 0) == [1, 2, 3]
    assert batches._shards(9, 2) == [2, 3]


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_closes_what_it_has_read(pool: Path, workers: int) -> None:
    """The descriptors of the six training shards while batches of five go by: never all, and none when it is over."""
    folder = str(pool / "train")
    shards, most = Shards.open(folder), 0

    def num_open() -> int:
        links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        return sum(str(os.path.realpath(link)).startswith(folder) and str(os.path.realpath(link)).endswith(".tar") for link in links)

    view = EvalView(16, crop_fraction=1.0, interpolation="bilinear")
    batches = EvalBatches(shards, view, 5, num_ahead=0)
    for _ in load_batches(batches, range(len(batches)), workers=workers, kind="threads"):
        most = max(most, num_open())
    assert 0 < most <= 4
    assert num_open() == 0
