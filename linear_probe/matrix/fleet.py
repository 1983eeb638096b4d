"""Runs tasks of a matrix in other processes: local workers, dealt over the GPUs, or tasks of a SLURM array."""

import collections
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...cli.errors import UserError
from ...datasets.atomic import write_text
from ...slurm.array import TASK, Array, is_running, render_array, submit
from ...slurm.settings import SlurmSettings
from ..failures import append_failure
from .tasks import FINISHED, Task, TaskState, read_state, write_state
from .worker import Watcher

_POLL_S = 0.2

WORKER = (sys.executable, "-m", "bamboo.linear_probe.multi_run", "--config")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fleet:
    """What local workers and SLURM tasks have in common: the matrix on disk, the tasks, and who watches."""

    matrix: Path
    """The settings file that every worker reads."""
    out: Path
    run_id: str
    tasks: Sequence[Task]
    watch: Watcher

    def command(self, task: str) -> list[str]:
        """Returns the command that carries out one task."""
        return [*WORKER, str(self.matrix), "--launcher", "local", "--processes", "1", "--run-id", self.run_id, "--tasks", task]

    def state(self, task: Task) -> TaskState:
        """Returns how far a task is by its file."""
        return read_state(task.state_path(self.out), self.run_id) or task.waiting(self.run_id)

    def look(self) -> list[TaskState]:
        """Tells the watcher how far each task is, and returns the states."""
        states = [self.state(task) for task in self.tasks]
        for task, state in zip(self.tasks, states, strict=True):
            self.watch(task.number, state)
        return states

    def give_up(self, task: Task, reason: str) -> None:
        """Notes every unfinished cell of a task whose process ended as failed."""
        state = self.state(task)
        cells = []
        for cell in state.cells:
            if cell.state not in FINISHED:
                append_failure(
                    self.out,
                    model=task.model,
                    checkpoint=task.checkpoint,
                    dataset=task.dataset,
                    protocol=cell.protocol,
                    subset=cell.subset,
                    reason=reason,
                )
                cell = dataclasses.replace(cell, state="failed", reason=reason)
            cells.append(cell)
        state = dataclasses.replace(state, cells=tuple(cells), doing="")
        write_state(task.state_path(self.out), state)
        self.watch(task.number, state)


def run_local(fleet: Fleet, slots: Sequence[dict[str, str]], retries: int) -> None:
    """Runs every task in a process of its own, as many at once as there are `slots`.

    Args:
        slots: what each of the processes that run at once finds in its environment (CUDA_VISIBLE_DEVICES).
        retries: how often a task is started again whose process died.
    """
    waiting = collections.deque(fleet.tasks)
    attempts: collections.Counter[int] = collections.Counter()
    running: dict[int, tuple[Task, subprocess.Popen[bytes]]] = {}
    try:
        while waiting or running:
            for slot in (slot for slot in range(len(slots)) if slot not in running and waiting):
                task = waiting.popleft()
                running[slot] = task, _start(fleet, task, slots[slot])
            time.sleep(_POLL_S)
            for slot, (task, process) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[slot]
                if not fleet.state(task).is_finished:
                    attempts[task.number] += 1
                    if attempts[task.number] <= retries:
                        waiting.append(task)
                    else:
                        fleet.give_up(task, f"its process {_ending(process.returncode)}; log: {_log(fleet, task)}")
            fleet.look()
    finally:
        for _, process in running.values():
            process.terminate()


def run_slurm(fleet: Fleet, settings: SlurmSettings, *, name: str, watched: bool, told: Callable[[str], Any]) -> Array:
    """Submits the tasks as one array; where `watched`, returns when it is over, with every cell finished or noted as failed."""
    logs = fleet.out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    script = fleet.out / f"{name}.sh"
    write_text(script, slurm_script(fleet, settings, name=name))
    array = submit(script)
    told(f"submitted {len(fleet.tasks)} tasks as job {array.job}: {script}, logs in {logs}\n")
    if not watched:
        return array
    poll_s = 1.0
    while is_running(array):
        time.sleep(poll_s)
        fleet.look()
        poll_s = min(2.0 * poll_s, 15.0)  # a scheduler serves many users
    for task in fleet.tasks:
        if not fleet.state(task).is_finished:
            fleet.give_up(task, f"its SLURM task ended without a result; log: {logs / f'{array.job}_{task.number}.log'}")
    fleet.look()
    return array


def slurm_script(fleet: Fleet, settings: SlurmSettings, *, name: str) -> str:
    """Returns the batch script of the array; task numbers are the matrix's own."""
    numbers = [task.number for task in fleet.tasks]
    return render_array(name, numbers, fleet.command(TASK), Path.cwd(), (fleet.out / "logs").absolute(), settings)


def gpu_slots(processes: int) -> list[dict[str, str]]:
    """Returns the environments of `processes` workers, each with one of the GPUs in turn; 0 means one per GPU, at least one.

    Raises:
        UserError: for a negative number.
    """
    import torch  # seconds: only where workers are really started

    if processes < 0:
        raise UserError(f"processes={processes}: must be 0 (one per GPU) or more")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
    gpus = gpus if torch.cuda.is_available() else []
    count = processes or max(len(gpus), 1)
    cores = max(len(os.sched_getaffinity(0)) // count, 1)
    shared = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(cores))}
    return [shared | ({"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}) for number in range(count)]


def _start(fleet: Fleet, task: Task, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    log = _log(fleet, task)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        return subprocess.Popen(fleet.command(str(task.number)), stdout=file, stderr=file, env=os.environ | environment)


def _log(fleet: Fleet, task: Task) -> Path:
    return fleet.out / "logs" / f"{task.state_path(fleet.out).stem}.log"


def _ending(code: int) -> str:
    return f"was killed by signal {-code}" + (" (out of memory?)" if code == -9 else "") if code < 0 else f"ended with exit code {code}"
