"""Job arrays: one batch script, many numbered tasks. It renders and submits commands, and knows nothing of what they do."""

import dataclasses
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from string import Template

from ..cli.errors import BambooError, UserError
from .directives import directives
from .settings import SlurmSettings

TASK = "$SLURM_ARRAY_TASK_ID"
"""Stands in a command for the number of the task."""

_COMMAND_LIMIT_S = 120.0
_SILENCE_LIMIT_S = 600.0

_SCRIPT = Template("""\
#!/bin/bash
$directives

set -euo pipefail
cd $folder
$setup
echo "task $$SLURM_ARRAY_TASK_ID of job $$SLURM_ARRAY_JOB_ID on $$(hostname)"
exec $command
""")


@dataclasses.dataclass(frozen=True)
class Array:
    """A submitted array."""

    job: str
    """SLURM's job id."""


def render_array(name: str, tasks: Sequence[int], command: Sequence[str], folder: Path, logs: Path, settings: SlurmSettings) -> str:
    """Returns the batch script of an array.

    Args:
        tasks: numbers of the tasks, ≥ 0; runs of numbers are written as ranges.
        command: program and arguments; an argument that is `TASK` becomes the number of the task, all others are quoted.
        folder: where the command starts.
        logs: folder of the log files, `JOB_TASK.log`; it must exist when the job starts, or SLURM fails it without a word.

    Raises:
        UserError: for no task, or a negative number.
    """
    if not tasks or min(tasks) < 0:
        raise UserError(f"tasks={list(tasks)}: an array needs at least one task, numbered from 0")
    throttle = "" if settings.max_running is None else f"%{settings.max_running}"
    options: dict[str, str | None] = {
        "job-name": name,
        "array": ranges(tasks) + throttle,
        "output": f"{str(logs).replace('%', '%%')}/%A_%a.log",
        "nodes": "1",
        "ntasks": "1",
    }
    return _SCRIPT.substitute(
        directives=directives(settings, options),
        folder=shlex.quote(str(folder)),
        setup="\n".join(settings.setup),
        command=" ".join(f'"{TASK}"' if word == TASK else shlex.quote(word) for word in command),
    )


def ranges(numbers: Iterable[int]) -> str:
    """Returns numbers as sbatch's --array takes them, `0-3,7`."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)


def submit(script: Path) -> Array:
    """Submits a batch script with sbatch.

    Raises:
        UserError: when there is no sbatch here, or it refuses; its own words are in the message.
    """
    if shutil.which("sbatch") is None:
        raise UserError("there is no sbatch on this machine; run on a login node of the cluster, or only look at it with --dry-run")
    reply = _run(["sbatch", "--parsable", str(script)])
    return Array(reply.strip().split(";")[0])


def is_running(array: Array) -> bool:
    """Returns whether any task of the array is still pending or running.

    Raises:
        UserError: when squeue does not answer.
    """
    # all jobs of this user, since squeue --jobs fails for one that is over and forgotten
    return array.job in _run(["squeue", "--me", "--noheader", "--format=%F"]).split()


def wait(array: Array, watch: Callable[[], object] = lambda: None, *, poll_s: float = 1.0) -> None:
    """Returns when no task of the array is pending or running any more; calls `watch` at every look.

    The pauses grow from `poll_s` to 15 s, since a scheduler serves many users, and a queue that does not answer is asked again for ten
    minutes.

    Raises:
        BambooError: when it still does not; the array goes on without us.
    """
    silent_since: float | None = None
    while True:
        try:
            if not is_running(array):
                return
            silent_since = None
        except UserError as error:
            now = time.monotonic()
            silent_since = now if silent_since is None else silent_since
            if now - silent_since > _SILENCE_LIMIT_S:
                silence = f"the queue has not answered for {_SILENCE_LIMIT_S:.0f} s"
                raise BambooError(f"{silence}; job {array.job} goes on without being watched: {error}") from None
        watch()
        time.sleep(poll_s)
        poll_s = min(1.5 * poll_s, 15.0)


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(f"{command[0]} did not answer within {_COMMAND_LIMIT_S:.0f} s") from None
    if done.returncode:
        raise UserError(f"{shlex.join(command)}: exit {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
