"""Job arrays: one batch script, many numbered tasks, whatever the command is that they run."""

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template

from ..cli.errors import UserError
from .directives import directives, setup_lines
from .settings import SlurmSettings

TASK = "$SLURM_ARRAY_TASK_ID"
"""Stands in a command for the number of the task."""

_SCRIPT = Template("""\
#!/bin/bash
$directives

set -euo pipefail
fail() { code=$$?; echo "$$1" >&2; exit "$$code"; }
cd $folder
$setup
echo "task $$SLURM_ARRAY_TASK_ID of job $$SLURM_ARRAY_JOB_ID on $$(hostname)"
exec $command
""")


def render_array(name: str, tasks: Sequence[int], command: Sequence[str], folder: Path, logs: Path, settings: SlurmSettings) -> str:
    """Returns the batch script of an array of one-node tasks.

    Args:
        tasks: numbers of the tasks, ≥ 0; runs of numbers are written as ranges.
        command: program and arguments; an argument that is `TASK` becomes the number of the task, all others are quoted.
        folder: where the command starts.
        logs: folder of the log files, `JOB_TASK.log`; it must exist when the job starts, or SLURM fails it without a word.

    Raises:
        UserError: for no task, or a negative number.
    """
    options: dict[str, str | None] = {
        "job-name": name,
        "array": array_option(tasks, settings.max_running),
        "output": log_pattern(logs, "%A_%a"),
        "nodes": "1",
        "ntasks": "1",
    }
    return _SCRIPT.substitute(
        directives=directives(settings, options),
        folder=shlex.quote(str(folder)),
        setup=setup_lines(settings.setup),
        command=" ".join(f'"{TASK}"' if word == TASK else shlex.quote(word) for word in command),
    )


def array_option(tasks: Sequence[int], max_running: int | None) -> str:
    """Returns the value of sbatch's --array: `0-3,7%2`.

    Raises:
        UserError: for no task, or a negative number.
    """
    if not tasks or min(tasks) < 0:
        raise UserError(f"tasks={list(tasks)}: an array needs at least one task, numbered from 0")
    return ranges(tasks) + ("" if max_running is None else f"%{max_running}")


def log_pattern(logs: Path, name: str) -> str:
    """Returns the value of sbatch's --output for log files in a folder, whose own per cent signs are no patterns."""
    return f"{str(logs).replace('%', '%%')}/{name}.log"


def ranges(numbers: Iterable[int]) -> str:
    """Returns numbers as sbatch's --array takes them, `0-3,7`."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)
