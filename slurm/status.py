"""How jobs and cells stand: what their scripts left in the folder of logs, and what SLURM has in the queue."""

import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..cli.errors import EXIT_DONE, EXIT_FAILURE, EXIT_RESUMABLE, UserError
from .job_settings import DEFAULT_SWEEP_LOGS, StatusSettings
from .queue import queued, remembered

SWEEP_NAME = "sweep.json"
"""In the folder of logs of a sweep: its folder of runs, and the names of its cells in their order."""

_TAIL_BYTES = 65536
_COLUMNS = ("state", "step", "attempts", "reason")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    code: int
    reason: str


@dataclasses.dataclass(frozen=True)
class Standing:
    """How a job, or a cell of a sweep, stands."""

    name: str
    """The job's number, or the cell's name."""
    state: str
    """new (not submitted), finished, failed, stopped (resumable, and not queued), lost (ended without a word), unknown (where SLURM
    cannot be asked), or SLURM's own, in lower case: pending, running, completing.
    """
    step: int | None
    """Last step known to be done."""
    attempts: int
    """How often its script has started."""
    reason: str
    """Why it ended, in the words of its script, or of SLURM."""


def outcome_of(state: Path, job: str) -> Outcome:
    """Returns how a job that has left the queue ended: in its script's words, or, where that was killed, in SLURM's."""
    return _outcome(state) or Outcome(EXIT_FAILURE, f"its script ended without a word; SLURM says: {remembered(job)}")


def is_finished(state: Path) -> bool:
    """Returns whether the run whose jobs keep their state in that folder has come to its end."""
    return _marker(state).get("reason") == "finished"


def job_of(state: Path) -> str:
    """Returns the number of the last job of a cell, `7_3`; "" where none was submitted."""
    try:
        return (state / "job").read_text().strip()
    except OSError:
        return ""


def show_status(settings: StatusSettings) -> int:
    """Carries out `bamboo slurm status` and returns the exit code."""
    logs = next((path for path in (settings.folder, settings.folder / DEFAULT_SWEEP_LOGS) if (path / SWEEP_NAME).exists()), settings.folder)
    if not logs.is_dir():
        raise UserError(f"folder={settings.folder}: no such folder; give the --logs of a job, or the --runs of a sweep")
    try:
        queue: Mapping[str, str] | None = queued()
    except UserError as error:
        queue = None
        sys.stderr.write(f"what is in the queue is not known: {error}\n")
    found = list(standings(logs, queue))
    sys.stdout.write(table(found) if found else f"{logs}: no job has left anything here\n")
    return EXIT_DONE


def standings(logs: Path, queue: Mapping[str, str] | None) -> Iterator[Standing]:
    """Yields how every cell of a sweep stands, or every job of a folder of logs; `queue`: state by number, or None if it is not known."""
    if (logs / SWEEP_NAME).exists():
        sweep = json.loads((logs / SWEEP_NAME).read_text())
        for name in sweep["cells"]:
            yield _standing(name, logs / name, job_of(logs / name), queue, Path(sweep["runs"]) / name / "log.jsonl")
        return
    jobs = {path.stem for path in logs.glob("*.sh") if path.stem.isdecimal()} | {
        path.name for path in logs.glob("*/") if path.name.isdecimal()
    }
    for job in sorted(jobs, key=int):
        yield _standing(job, logs / job, job, queue, None)


def table(rows: Sequence[Standing]) -> str:
    """Returns the rows as lines of text; the last one counts the states."""
    name = "cell" if any(not row.name.isdecimal() for row in rows) else "job"
    lines = [(name, *_COLUMNS)]
    lines += [(row.name, row.state, "" if row.step is None else f"{row.step:,}", str(row.attempts), row.reason) for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    right = (lines[0].index("step"), lines[0].index("attempts"))
    text = ""
    for line in lines:
        words = [
            word.rjust(width) if column in right else word.ljust(width)
            for column, (word, width) in enumerate(zip(line, widths, strict=True))
        ]
        text += "  ".join(words).rstrip() + "\n"
    counts = {state: sum(row.state == state for row in rows) for state in dict.fromkeys(row.state for row in rows)}
    return f"{text}{len(rows)} {name}{'s' if len(rows) > 1 else ''}: {', '.join(f'{count} {state}' for state, count in counts.items())}\n"


def exit_code(rows: Sequence[Standing]) -> int:
    """Returns 0 where all have finished, 75 where the others can go on, else 1."""
    states = {row.state for row in rows} - {"finished"}
    return (EXIT_RESUMABLE if states == {"stopped"} else EXIT_FAILURE) if states else EXIT_DONE


def _standing(name: str, state: Path, job: str, queue: Mapping[str, str] | None, log: Path | None) -> Standing:
    outcome, marker = _outcome(state), _marker(state)
    step = marker.get("step") if log is None else _last_step(log)
    attempts = sum(1 for _ in state.glob("attempt-*"))
    now = (queue or {}).get(job, "").lower()
    if is_finished(state) or (outcome is not None and outcome.code == 0):
        return Standing(name, "finished", step, attempts, "")
    if now:
        return Standing(name, now, step, attempts, "")
    if outcome is not None:
        return Standing(name, "stopped" if outcome.code == EXIT_RESUMABLE else "failed", step, attempts, outcome.reason)
    if not job:
        return Standing(name, "new", step, attempts, "")
    if queue is None:
        return Standing(name, "unknown", step, attempts, f"job {job}: queued, running, or ended without a word")
    return Standing(name, "lost", step, attempts, outcome_of(state, job).reason)


def _outcome(state: Path) -> Outcome | None:
    try:
        code, _, reason = (state / "outcome").read_text().strip().partition("\n")
        return Outcome(int(code), reason)
    except (OSError, ValueError):
        return None


def _marker(state: Path) -> dict[str, Any]:
    """Returns what the run wrote last, `ended.json`; nothing where there is none."""
    try:
        found = json.loads((state / "ended.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _last_step(log: Path) -> int | None:
    """Returns the step of the last row of a run's log.jsonl, of which a writer may be in the midst; None where there is none."""
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(file.tell() - _TAIL_BYTES, 0))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            continue
    return None
