"""What each loader worker is doing and what its time went into, kept where the main process can look at any moment.

A row of a dozen int64 per worker lies in the same shared memory as the batches, so it survives a worker that hangs or is killed, and
goes with the processes that hold it. One worker writes a row and others only read it; a reading may mix two neighbouring moments.
"""

import enum
import time
from typing import NamedTuple


class Stage(enum.IntEnum):
    """What a worker does; LOAD stands for READ and DECODE where a store cannot tell them apart.

    FETCH gets the sample's shard from elsewhere, QUEUE waits until another thread, process or job has it, or leaves room for it.
    """

    WAIT = 0
    PLAN = 1
    READ = 2
    DECODE = 3
    LOAD = 4
    CROP = 5
    COLLATE = 6
    FETCH = 7
    QUEUE = 8


class Moment(NamedTuple):
    """What a worker is doing: the stage, the sample in hand (-1: none), and since when, in ns of the monotonic clock."""

    stage: Stage
    sample: int
    since_ns: int


_STAGE, _SAMPLE, _SINCE, _SPENT = 0, 1, 2, 3  # columns of a row
_IMAGES, _CROP = _SPENT + len(Stage), int(Stage.CROP)
NUM_COLUMNS = _IMAGES + 1
ROW_BYTES = 8 * NUM_COLUMNS


class StageClock:
    """One worker's row, written by it: `enter` ends the stage it is in and begins the next. Costs about a quarter of a microsecond."""

    def __init__(self, row: memoryview | None = None) -> None:
        """Takes a writable row of `NUM_COLUMNS` int64, or makes one of its own."""
        self._row = memoryview(bytearray(ROW_BYTES)).cast("q") if row is None else row
        self._column, self._since = _SPENT, time.monotonic_ns()
        self._row[_SAMPLE] = -1
        self._row[_SINCE] = self._since

    def enter(self, stage: int, sample: int = -1) -> None:
        """Begins `stage`, with `sample` in hand."""
        row, now = self._row, time.monotonic_ns()
        row[self._column] += now - self._since
        row[_STAGE], row[_SAMPLE], row[_SINCE] = stage, sample, now
        if stage == _CROP:
            row[_IMAGES] += 1
        self._column, self._since = _SPENT + stage, now


class Readings:
    """The rows of all workers, as anyone may read them."""

    def __init__(self, num_workers: int, memory: memoryview | None = None) -> None:
        """Takes at least `num_workers` · `ROW_BYTES` bytes, zeroed, or makes them."""
        cells = memoryview(bytearray(num_workers * ROW_BYTES)) if memory is None else memory[: num_workers * ROW_BYTES]
        self._cells = cells.cast("q")
        self.num_workers = num_workers

    def row(self, worker: int) -> memoryview:
        """Returns the row of a worker, for its clock."""
        return self._cells[worker * NUM_COLUMNS : (worker + 1) * NUM_COLUMNS]

    def moment(self, worker: int) -> Moment:
        """Returns what a worker is doing now."""
        row = self.row(worker)
        return Moment(Stage(row[_STAGE]), row[_SAMPLE], row[_SINCE])

    def images(self, worker: int) -> int:
        """Returns how many images a worker has read and decoded, whether or not their batch is complete."""
        count: int = self.row(worker)[_IMAGES]
        return count

    def spent_s(self, worker: int) -> dict[Stage, float]:
        """Returns the seconds a worker has spent in each stage, the one it is in up to now included."""
        row, now = self.row(worker), time.monotonic_ns()
        spent = {stage: row[_SPENT + stage] / 1e9 for stage in Stage}
        if row[_SINCE]:  # it has started
            spent[Stage(row[_STAGE])] += (now - row[_SINCE]) / 1e9
        return spent
