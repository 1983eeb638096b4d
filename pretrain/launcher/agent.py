"""torchrun's agent on a node, which says in one paragraph which rank died, how, and what follows."""

import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.launcher import api

from .deaths import Death, is_stop, memory_kills, newest_step, tell

_PATIENCE_S = 10  # for ranks whose peer has died: they can reach no boundary any more; torchrun waits for 30


class Agent(LocalElasticAgent):
    """torchrun's own, but for what it says."""

    argv: Sequence[str] = ()
    """torchrun's arguments, in which the run folder stands."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._memory_kills = memory_kills()

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        started: dict[int, Any] = super()._start_workers(worker_group)
        assert self._pcontext is not None, "just started"
        self._pcontext.close = _with_patience(self._pcontext.close)  # type: ignore[method-assign]  # torchrun asks nobody how long it waits
        return started

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state == WorkerState.FAILED:
            logs = getattr(self._pcontext, "stderrs", {})
            deaths = [
                Death(rank, failure.local_rank, failure.pid, failure.exitcode, logs.get(failure.local_rank, ""))
                for rank, failure in sorted(result.failures.items())
            ]
            if not is_stop(deaths):
                self._tell(deaths, worker_group.spec.max_restarts)
        return result

    def _tell(self, deaths: Sequence[Death], max_restarts: int) -> None:
        restart = max_restarts - self._remaining_restarts + 1 if self._remaining_restarts else 0
        kills = memory_kills()
        told = tell(
            deaths,
            restart=restart,
            max_restarts=max_restarts,
            step=newest_step(self.argv),
            out_of_memory=kills > self._memory_kills,
        )
        self._memory_kills = kills
        sys.stderr.write(told)
        sys.stderr.flush()


def install(argv: Sequence[str]) -> None:
    """Has torchrun use this agent in this process."""
    Agent.argv = tuple(argv)
    api.LocalElasticAgent = Agent  # type: ignore[attr-defined]  # torchrun takes no agent from outside


def _with_patience(close: Callable[..., None]) -> Callable[..., None]:
    def closed(death_sig: signal.Signals | None = None, timeout: int = _PATIENCE_S) -> None:
        close(death_sig, timeout)

    return closed
