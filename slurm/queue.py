"""SLURM's own commands: a script is submitted, the queue is looked at, a job that has left it is asked after."""

import dataclasses
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ..cli.errors import BambooError, UserError

_COMMAND_LIMIT_S = 120.0
_SILENCE_LIMIT_S = 600.0


@dataclasses.dataclass(frozen=True)
class Array:
    """A submitted job, or array of jobs."""

    job: str
    """SLURM's job id."""


def submit(script: Path) -> Array:
    """Submits a batch script with sbatch.

    Raises:
        UserError: when there is no sbatch here, or it refuses; its own words are in the message.
    """
    if shutil.which("sbatch") is None:
        raise UserError("there is no sbatch on this machine; run on a login node of the cluster, or only look at it with --dry-run")
    reply = _run(["sbatch", "--parsable", str(script)], _outside_of_any_job())
    found = re.findall(r"^(\d+)(?:;\S+)?$", reply, re.MULTILINE)  # a site's wrapper may say more than the number
    if not found:
        raise UserError(f"sbatch has not said under which number it took {script}: {reply.strip()!r}")
    return Array(found[-1])


def is_running(array: Array) -> bool:
    """Returns whether any task of the array is still pending or running.

    Raises:
        UserError: when squeue does not answer.
    """
    # all jobs of this user, since squeue --jobs fails for one that is over and forgotten
    return array.job in _run(["squeue", "--me", "--noheader", "--format=%F"]).split()


def queued() -> dict[str, str]:
    """Returns the state of every job of this user that is in the queue, by its number: `7`, or `7_3` for a task of an array.

    Raises:
        UserError: when squeue does not answer, or is not there.
    """
    if shutil.which("squeue") is None:
        raise UserError("there is no squeue on this machine")
    rows = _run(["squeue", "--me", "--array", "--noheader", "--format=%i %T"]).splitlines()
    return {job: state for job, _, state in (row.strip().partition(" ") for row in rows)}


def remembered(job: str) -> str:
    """Returns what SLURM remembers of a job that has left the queue, for some minutes: `JobState=NODE_FAIL Reason=… ExitCode=…`."""
    if shutil.which("scontrol") is None:
        return "nothing"
    shown = subprocess.run(["scontrol", "show", "--oneliner", "job", job], capture_output=True, text=True, check=False)
    words = dict(word.partition("=")[::2] for word in shown.stdout.split())
    told = [f"{name}={words[name]}" for name in ("JobState", "Reason", "ExitCode") if name in words]
    return " ".join(told) or shown.stderr.strip() or "nothing"


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


def _outside_of_any_job() -> dict[str, str]:
    """Returns the environment without what SLURM told the job that we may be in: sbatch and srun read the same names as options."""
    if "SLURM_JOB_ID" not in os.environ:
        return dict(os.environ)
    return {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SLURMD_")) or name == "SLURM_CONF"}


def _run(command: Sequence[str], environment: dict[str, str] | None = None) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_LIMIT_S, check=False, env=environment)
    except subprocess.TimeoutExpired:
        raise UserError(f"{command[0]} did not answer within {_COMMAND_LIMIT_S:.0f} s") from None
    if done.returncode:
        raise UserError(f"{shlex.join(command)}: exit {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
