"""All ranks of a run agree on the boundary at which it ends early."""

import signal
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from ...datasets.ranks import Ranks
from .signals import StopSignals

_VOTE_EVERY_S = 0.25
_MOST_SKIPPED = 32  # boundaries between votes, should they suddenly take longer


class StopRequested(Exception):  # noqa: N818  # no error, as StopIteration is none
    """Raised at the same boundary on all ranks."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Vote:
    """Whether all ranks stop, asked at every boundary: between steps, accumulation parts, evaluation batches and a solver's iterations.

    A vote is one small gloo all-reduce that runs beside the work: begun at one boundary, read at the next. Where boundaries follow
    each other quickly it is held about every quarter of a second, by the slowest rank's clock, so that all hold it at the same one.
    """

    def __init__(self, signals: StopSignals, ranks: Ranks, passed: Callable[[str], None] | None = None) -> None:
        """Every rank must make one, at the same point, since the votes have a process group of their own.

        Args:
            passed: told of every boundary.
        """
        self._signals, self._tell = signals, passed
        self._group: dist.ProcessGroup | None = None
        if ranks.world_size > 1:
            group = dist.new_group(backend="gloo", timeout=ranks.timeout)
            assert isinstance(group, dist.ProcessGroup), "every rank is in it"
            self._group = group
        self._ballot: tuple[torch.Tensor, dist.Work] | None = None
        self._place = ""
        self._passed, self._skip, self._since = 0, 0, time.perf_counter()
        self._told = 0.0

    def check(self, place: str = "training") -> None:
        """Marks a boundary; every rank marks the same ones.

        Args:
            place: kind of boundary; a change is voted on at once, as the pace of the one kind says nothing of the other.

        Raises:
            StopRequested: on all ranks, soon after any was asked to stop.
        """
        if self._tell is not None:
            self._tell(place)
        if self._group is None:
            if self._signals.number:
                raise StopRequested(self._signals.number)
            return
        self._passed += 1
        self._read()
        if place != self._place or self._passed > self._skip:
            self._place = place
            self._begin(self._group)

    def working(self) -> None:
        """Marks a boundary of work that this rank does while others wait in `until_none_works`; it may be marked often.

        Raises:
            StopRequested: as `check`.
        """
        if self._group is None:
            self.check("waiting")
        elif time.perf_counter() - self._told >= _VOTE_EVERY_S:
            self._any_works(self._group, True)

    def until_none_works(self) -> None:
        """Returns once no rank is at work any more, however long that takes: those that are say so at their boundaries.

        Raises:
            StopRequested: as `check`.
        """
        while self._group is not None and self._any_works(self._group, False):
            pass

    def _any_works(self, group: dist.ProcessGroup, works: bool) -> bool:
        """Returns whether any rank is at work; a boundary of all ranks, with its vote on the same paper."""
        if self._tell is not None:
            self._tell("waiting")  # first: a rank that is late has told of fewer boundaries than those that wait for it
        self._read()
        paper = torch.tensor([int(works), self._signals.number])
        dist.all_reduce(paper, op=dist.ReduceOp.MAX, group=group)
        self._told = time.perf_counter()
        any_works, number = paper.tolist()
        if number:
            raise StopRequested(number)
        return bool(any_works)

    def _begin(self, group: dist.ProcessGroup) -> None:
        now = time.perf_counter()
        paper = torch.tensor([self._signals.number, (now - self._since) / self._passed], dtype=torch.float64)
        work = dist.all_reduce(paper, op=dist.ReduceOp.MAX, group=group, async_op=True)
        assert work is not None, "this rank is in the group"
        self._ballot = paper, work
        self._passed, self._since = 0, now

    def _read(self) -> None:
        if self._ballot is None:
            return
        (paper, work), self._ballot = self._ballot, None
        work.wait()
        number, slowest_s = paper.tolist()
        if number:
            raise StopRequested(int(number))
        self._skip = min(int(_VOTE_EVERY_S / max(slowest_s, 1e-6)), _MOST_SKIPPED)
