"""Where the ranks' writers meet: a process group of their own, since training's collectives go on meanwhile in the others."""

import datetime
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from ...cli.errors import BambooError, DataError
from ...datasets.ranks import ALONE, Ranks

PATIENCE = datetime.timedelta(minutes=30)
"""How long a rank is waited for that neither comes nor is seen to die."""


class RankLostError(BambooError):
    """Another rank has died, or has not come for a very long time."""


class Meeting:
    """Work that the ranks do together, over gloo and from whatever thread: what goes wrong on one is raised on all.

    Every rank must make one, at the same point.
    """

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self.rank, self.world_size = ranks.rank, ranks.world_size
        self._group: Any = dist.new_group(backend="gloo", timeout=PATIENCE) if ranks.world_size > 1 else None

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def first_does(self, work: Callable[[], Any]) -> Any:
        """Returns on every rank what rank 0's work returned, or raises what it raised.

        Raises:
            RankLostError: when a rank is gone.
        """
        result, error = self._from_first(self._outcome(work) if self.is_first else None)
        if error is not None:
            raise error
        return result

    def all_do(self, work: Callable[[], Any]) -> list[Any]:
        """Returns on rank 0 what each rank's work returned, elsewhere nothing; or raises on every rank what the first to fail raised.

        Raises:
            RankLostError: when a rank is gone.
        """
        outcomes = self._from_all(self._outcome(work))
        error = self._from_first(next((error for _, error in outcomes if error is not None), None))
        if error is not None:
            raise error
        return [result for result, _ in outcomes]

    def _outcome(self, work: Callable[[], Any]) -> tuple[Any, Exception | None]:
        """Returns (result, None) or (None, error), the error such as another rank can raise, too."""
        where = f" (on rank {self.rank})" if self.world_size > 1 else ""
        try:
            return work(), None
        except OSError as error:
            return None, OSError(error.errno, f"{error.strerror}{where}", error.filename)
        except Exception as error:  # noqa: BLE001  # whatever it is, the others wait to hear of it
            return None, DataError(f"the checkpoint cannot be written: {type(error).__name__}: {error}{where}")

    def _from_first(self, value: Any) -> Any:
        if self._group is None:
            return value
        box = [value]
        try:
            dist.broadcast_object_list(box, src=0, group=self._group)
        except RuntimeError as error:
            raise _lost(error) from None
        return box[0]

    def _from_all(self, value: Any) -> list[Any]:
        if self._group is None:
            return [value]
        values = [None] * self.world_size if self.is_first else None
        try:
            dist.gather_object(value, values, dst=0, group=self._group)
        except RuntimeError as error:
            raise _lost(error) from None
        return values or []


def _lost(error: RuntimeError) -> RankLostError:
    return RankLostError(f"another rank is gone: {str(error).splitlines()[0]}")
