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

from ...datasets.atomic import write_text
from ...slurm.array import TASK, render_array
from ...slurm.queue import Array, submit, wait
from ...slurm.settings import SlurmSettings
from .tasks import FINISHED, Task, TaskState, read_state, write_state
from .worker import Watcher, note_failure

_POLL_S = 0.2
_END_LIMIT_S = 10.0
_LAST_WORDS = 300
MATRIX_NAME = "matrix.yaml"

WORKER = (sys.executable, "-m", "bamboo.linear_probe.multi_run", "--config")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fleet:
    """What local workers and SLURM tasks have in common: the matrix on disk, the tasks, and who watches."""

    start: Path
    """Folder of this start of the matrix: matrix.yaml, which every worker reads, the states of the tasks, and logs."""
    out: Path
    tasks: Sequence[Task]
    watch: Watcher

    def command(self, task: str) -> list[str]:
        """Returns the command that carries out one task."""
        matrix = str((self.start / MATRIX_NAME).absolute())
        return [*WORKER, matrix, "--launcher", "local", "--processes", "1", "--start", str(self.start.absolute()), "--tasks", task]

    def state(self, task: Task) -> TaskState:
        """Returns how far a task is by its file."""
        return read_state(self.start / f"{task.file_name}.json") or task.waiting

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
                note_failure(self.out, task, cell.protocol, cell.subset, reason)
                cell = dataclasses.replace(cell, state="failed", reason=reason)
            cells.append(cell)
        state = dataclasses.replace(state, cells=tuple(cells), doing="")
        write_state(self.start / f"{task.file_name}.json", state)
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
                        log = _log(fleet, task)
                        fleet.give_up(task, f"its process {_ending(process.returncode)}{_last_words(log)}; log: {log}")
            fleet.look()
    finally:
        _end([process for _, process in running.values()])


def run_slurm(fleet: Fleet, settings: SlurmSettings, *, name: str, watched: bool, told: Callable[[str], Any]) -> Array:
    """Submits the tasks as one array; where `watched`, returns when it is over, with every cell finished or noted as failed."""
    logs = _logs(fleet)
    logs.mkdir(parents=True, exist_ok=True)
    script = fleet.start / f"{name}.sh"
    write_text(script, slurm_script(fleet, settings, name=name))
    array = submit(script)
    told(f"submitted {len(fleet.tasks)} tasks as job {array.job}: {script}, logs in {logs}\n")
    if not watched:
        return array
    wait(array, fleet.look)
    for task in fleet.tasks:
        if not fleet.state(task).is_finished:
            log = logs / f"{array.job}_{task.number}.log"
            fleet.give_up(task, f"its SLURM task ended without a result{_last_words(log)}; log: {log}")
    fleet.look()
    return array


def slurm_script(fleet: Fleet, settings: SlurmSettings, *, name: str) -> str:
    """Returns the batch script of the array; task numbers are the matrix's own."""
    numbers = [task.number for task in fleet.tasks]
    return render_array(name, numbers, fleet.command(TASK), Path.cwd(), _logs(fleet).absolute(), settings)


def slots_for(processes: int, device: str) -> list[dict[str, str]]:
    """Returns the environments of `processes` workers, each with one of the GPUs in turn; 0 means one per GPU, at least one.

    Raises:
        UserError: for a device that is not there.
    """
    import torch  # seconds: only where workers are really started

    from ...datasets.ranks import require_device

    require_device(device)
    gpus: list[str] = []
    if device != "cpu" and torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
    count = processes or max(len(gpus), 1)
    cores = max(len(os.sched_getaffinity(0)) // count, 1)
    shared = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(cores))}
    return [shared | ({"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}) for number in range(count)]


def _start(fleet: Fleet, task: Task, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    log = _log(fleet, task)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        return subprocess.Popen(fleet.command(str(task.number)), stdout=file, stderr=file, env=os.environ | environment)


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ends processes, by force those that do not end in time."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(_END_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()


def _logs(fleet: Fleet) -> Path:
    return fleet.start / "logs"


def _log(fleet: Fleet, task: Task) -> Path:
    return _logs(fleet) / f"{task.file_name}.log"


def _last_words(log: Path) -> str:
    """Returns the last line of a log, after a colon; nothing where there is none."""
    try:
        lines = log.read_bytes()[-4096:].decode(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return f": {lines[-1].strip()[:_LAST_WORDS]}" if lines else ""


def _ending(code: int) -> str:
    return f"was killed by signal {-code}" + (" (out of memory?)" if code == -9 else "") if code < 0 else f"ended with exit code {code}"
