"""Time-outs: a rank that is too long at one operation ends the job, and says which rank holds up the others, and in what.

Every rank marks the same operations in the same order, so of ranks that wait for one another the one with the fewest marks is the one
that the others wait for. What the ranks are at they tell through small files in the run folder, which they write only when one is late.
"""

import dataclasses
import json
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from ...cli.errors import EXIT_FAILURE
from ...datasets.atomic import write_json
from ...datasets.ranks import Ranks
from ...datasets.stream.watchdog import stacks
from ..profiling.operations import AVERAGE, BACKWARD, DATA, EVALUATION, FORWARD, LOGGING, OPTIMIZER, SAVING, TRANSFER, VOTE
from ..settings.health import HealthSettings

FOLDER_NAME = "late"
_WORDS = {
    DATA: "waiting for a batch",
    TRANSFER: "moving a batch to the device",
    FORWARD: "in the forward pass",
    BACKWARD: "in the backward pass",
    OPTIMIZER: "in the optimiser's step",
    AVERAGE: "averaging weights",
    LOGGING: "reading the figures of a log line",
    VOTE: "waiting for the vote on stopping",
    EVALUATION: "evaluating",
    SAVING: "saving",
    "": "outside of any step",
}
_OF_A_STEP = frozenset((DATA, TRANSFER, FORWARD, BACKWARD, OPTIMIZER, AVERAGE, LOGGING, VOTE))
_LEAST_GRACE_S, _MOST_GRACE_S = 2.0, 10.0
_LOOK_EVERY_S = 5.0


@dataclasses.dataclass(frozen=True)
class Whereabouts:
    """What a rank is doing."""

    rank: int
    operation: str
    """The outermost mark; "": none."""
    detail: str
    """Marks inside of it, or how many batches of an evaluation it has begun."""
    step: int
    """Counted from 1; 0: none has begun."""
    marks: int
    """Marks passed since the start, equal on all ranks at the same place."""
    for_s: float
    host: str
    pid: int

    def describe(self) -> str:
        """Returns what it does, and in which step."""
        detail = f" ({self.detail})" if self.detail else ""
        return f"{_WORDS.get(self.operation, self.operation)}{detail}, step {self.step}"


class Deadlines:
    """Watches this rank's operations (it is an `Operations`) on a daemon thread; a context manager, to be entered by all ranks.

    Args:
        settings: `first_step_s` and `step_s`; both 0: nothing is watched.
        folder: run folder, which all ranks see.
        end: ends the process; for tests.
    """

    def __init__(self, settings: HealthSettings, ranks: Ranks, folder: Path, end: Callable[[int], Any] = os._exit) -> None:
        self._settings, self._ranks, self._end = settings, ranks, end
        self._board = Board(folder / FOLDER_NAME / ranks.from_first(uuid.uuid4().hex[:8]), ranks)
        self._names: list[str] = []
        self._step, self._first_step, self._batches, self._marks = -1, -1, 0, 0
        self._since = time.monotonic()
        self._stop = threading.Event()

    def step(self, number: int) -> None:
        """Step `number`, counted from 0, begins."""
        if self._first_step < 0:
            self._first_step = number
        self._step = number
        self._move()

    def during(self, name: str) -> "_Mark":
        """Marks the block as operation `name`."""
        return _Mark(self, name)

    def boundary(self, place: str) -> None:
        """Notes that work goes on inside of a long operation: another batch of an evaluation begins."""
        if place == EVALUATION:
            self._batches += 1
        self._move()

    def __enter__(self) -> "Deadlines":
        self._move()
        if self._settings.first_step_s or self._settings.step_s:
            if self._ranks.is_first:
                self._board.clear()
            limits = [limit for limit in (self._settings.first_step_s, self._settings.step_s) if limit]
            every_s = min(min(limits) / 8, _LOOK_EVERY_S)
            for task, name in ((self._watch, "bamboo-deadlines"), (self._answer, "bamboo-whereabouts")):
                threading.Thread(target=task, args=(every_s,), name=name, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()

    def whereabouts(self) -> Whereabouts:
        """Returns what this rank is doing now."""
        names = list(self._names)
        inner = [f"batch {self._batches}"] if names[:1] == [EVALUATION] and self._batches else []
        return Whereabouts(
            rank=self._ranks.rank,
            operation=names[0] if names else "",
            detail=", ".join(names[1:] + inner),
            step=self._step + 1,
            marks=self._marks,
            for_s=round(time.monotonic() - self._since, 1),
            host=socket.gethostname(),
            pid=os.getpid(),
        )

    def limit(self) -> tuple[str, float]:
        """Returns (setting, seconds) that hold for what this rank is doing now."""
        names = list(self._names)
        steady = self._step > self._first_step and names[:1] != [] and names[0] in _OF_A_STEP
        name = "step_s" if steady else "first_step_s"
        return f"health.{name}", getattr(self._settings, name)

    def _move(self) -> None:
        self._marks += 1
        self._since = time.monotonic()

    def _watch(self, every_s: float) -> None:
        marks, for_s, looked = self._marks, 0.0, time.monotonic()
        while not self._stop.wait(every_s):
            now = time.monotonic()
            # A look counts for two at most: a job that was suspended (SIGSTOP, a virtual machine put to sleep) has not been late meanwhile.
            for_s = for_s + min(now - looked, 2 * every_s) if marks == self._marks else 0.0
            marks, looked = self._marks, now
            name, limit_s = self.limit()
            if limit_s and for_s > limit_s and marks == self._marks:
                self._give_up(name, limit_s)
                return

    def _answer(self, every_s: float) -> None:
        """Tells where this rank is once another one is late; on a thread of its own, since the disk may hang."""
        while not self._stop.wait(every_s):
            if self._board.is_in_use():
                self._board.post(self.whereabouts())
                return

    def _give_up(self, name: str, limit_s: float) -> None:
        mine = self.whereabouts()
        grace_s = min(max(limit_s / 4, _LEAST_GRACE_S), _MOST_GRACE_S)
        found = {mine.rank: mine}
        asker = threading.Thread(target=self._ask, args=(mine, found, time.monotonic() + grace_s), daemon=True)
        asker.start()
        asker.join(grace_s + 1)
        told = late(mine, dict(found), self._ranks.world_size)
        text = f"\n{told}\nlimit: {name}={limit_s:g}; this rank ends, and with it the job\n{stacks()}"
        os.write(2, text.encode(errors="replace"))  # in one piece
        self._end(EXIT_FAILURE)

    def _ask(self, mine: Whereabouts, found: dict[int, Whereabouts], until: float) -> None:
        self._board.post(mine)
        while len(found) < self._ranks.world_size and time.monotonic() < until:
            time.sleep(0.1)
            found.update(self._board.read())


class _Mark:
    """A block of an operation."""

    def __init__(self, deadlines: Deadlines, name: str) -> None:
        self._deadlines, self._name = deadlines, name

    def __enter__(self) -> None:
        if self._name == EVALUATION:
            self._deadlines._batches = 0
        self._deadlines._names.append(self._name)
        self._deadlines._move()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._deadlines._names.pop()
        self._deadlines._move()


class Board:
    """Small files by which the ranks of one attempt tell one another where they are."""

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self._folder, self._ranks = folder, ranks

    def clear(self) -> None:
        """Removes what earlier attempts have left."""
        shutil.rmtree(self._folder.parent, ignore_errors=True)

    def is_in_use(self) -> bool:
        """Whether some rank has posted."""
        return self._folder.exists()

    def post(self, where: Whereabouts) -> None:
        """Tells where this rank is."""
        self._folder.mkdir(parents=True, exist_ok=True)
        write_json(self._folder / f"rank-{where.rank}.json", dataclasses.asdict(where))

    def read(self) -> dict[int, Whereabouts]:
        """Returns who has posted what."""
        found = {}
        for path in self._folder.glob("rank-*.json"):
            where = Whereabouts(**json.loads(path.read_bytes()))
            found[where.rank] = where
        return found


def late(mine: Whereabouts, found: Mapping[int, Whereabouts], world_size: int) -> str:
    """Returns what is said of a rank that is late: where it is, where the others are, and whom they wait for."""
    lines = [f"rank {mine.rank} (node {mine.host}, process {mine.pid}): {mine.describe()}, for {mine.for_s:.0f} s"]
    groups: dict[str, list[Whereabouts]] = {}
    for rank in sorted(found):
        if rank != mine.rank:
            groups.setdefault(found[rank].describe(), []).append(found[rank])
    for words, members in groups.items():
        longest = max(member.for_s for member in members)
        lines.append(f"  {_ranks([member.rank for member in members])}: {words}, for {longest:.0f} s")
    silent = sorted(set(range(world_size)) - found.keys())
    if silent:
        lines.append(f"  no word from {_ranks(silent)}: dead, frozen, or cut off from the run folder")
    if world_size > 1:
        lines.append(_culprit(found, silent))
    return "\n".join(lines)


def _culprit(found: Mapping[int, Whereabouts], silent: list[int]) -> str:
    least = min(where.marks for where in found.values())
    behind = [where for where in found.values() if where.marks == least]
    if len(behind) < len(found):
        first = behind[0]
        who = ", ".join(f"rank {where.rank} on {where.host}" for where in behind)
        return f"→ {who}, {first.describe()}: the others have passed that and wait for it"
    if silent:
        return f"→ all that answered are at the same place; {_ranks(silent)} did not answer, and will be what they wait for"
    return "→ all ranks are at the same place: what hangs is what they do together there, or the network between them"


def _ranks(numbers: list[int]) -> str:
    """Returns "rank 3", or "ranks 0-2, 5"."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    text = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
    return f"rank{'s' * (len(numbers) > 1)} {text}"
