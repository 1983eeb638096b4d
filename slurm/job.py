"""Pretraining as a job, or as an array of them, one per cell of a sweep: checked, submitted, waited for."""

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..cli.errors import EXIT_DONE, UserError
from .dry_runs import dry_run
from .job_settings import JobSettings, RenderSettings, SubmitSettings
from .queue import Array, queued, submit, wait
from .script import arguments_of, render_job
from .status import SWEEP_NAME, exit_code, is_finished, job_of, outcome_of, standings, table
from .sweep import Cell, read_sweep

_LAST_LINES = 20
_SHOWN_PROBLEMS = 5


def render(settings: RenderSettings) -> int:
    """Carries out `bamboo slurm render` and returns the exit code."""
    cells = _cells(settings)
    _refuse_another_sweep(settings)
    settings.out.write_text(render_job(settings, Path.cwd(), cells))
    settings.logs_folder.mkdir(parents=True, exist_ok=True)  # SLURM fails a job whose log it cannot open, without a word
    if cells:
        _write_sweep(settings, cells)
    sys.stdout.write(f"wrote {settings.out}; submit it with: sbatch {shlex.quote(str(settings.out))}\n")
    return EXIT_DONE


def submit_job(settings: SubmitSettings) -> int:
    """Carries out `bamboo slurm submit` and returns the exit code; with `wait` that is the job's.

    Of a sweep only those cells are submitted that are not finished, nor in the queue already.

    Raises:
        UserError: when the arguments of a run do not work, when sbatch refuses, or is not there.
    """
    cells = _cells(settings)
    if settings.dry_run:
        sys.stderr.write("".join(f"{cell.number}  bamboo pretrain {shlex.join(arguments_of(settings, cell))}\n" for cell in cells))
        sys.stdout.write(render_job(settings, Path.cwd(), cells))
        return EXIT_DONE
    if cells:
        return _submit_sweep(settings, cells)
    if settings.check:
        _check(settings, ())
    job = _submit(settings, ())
    logs = settings.logs_folder
    log = logs / f"{job}.log"
    _tell(f"submitted job {job}: {logs / f'{job}.sh'}, log {log}\n")
    if not settings.wait:
        return EXIT_DONE
    wait(Array(job))
    outcome = outcome_of(logs / job, job)
    if outcome.code:
        last = log.read_text(errors="replace").splitlines()[-_LAST_LINES:] if log.exists() else []
        sys.stderr.write("".join(f"  {line}\n" for line in last))
    _tell(f"job {job}: {outcome.reason}\n")
    return outcome.code


def _submit_sweep(settings: SubmitSettings, cells: Sequence[Cell]) -> int:
    _refuse_another_sweep(settings)
    logs = settings.logs_folder
    finished = {cell for cell in cells if is_finished(logs / cell.name)}
    queue = queued() if any(job_of(logs / cell.name) for cell in cells) else {}
    waiting = {cell for cell in cells if cell not in finished and job_of(logs / cell.name) in queue}
    due = [cell for cell in cells if cell not in finished and cell not in waiting]
    rest = f"{len(finished)} of {len(cells)} cells are finished, {len(waiting)} in the queue"
    if due:
        if settings.check:
            _check(settings, due)
        _write_sweep(settings, cells)
        with _cleared(logs, due):
            job = _submit(settings, due)
        for cell in due:
            (logs / cell.name / "job").write_text(f"{job}_{cell.number}\n")
        _tell(f"submitted {len(due)} cells as job {job}: {logs / f'{job}.sh'}, logs in {logs}; {rest}\n")
    else:
        _tell(f"nothing to submit: {rest}\n")
    if not settings.wait:
        return EXIT_DONE
    for number in sorted({job_of(logs / cell.name).partition("_")[0] for cell in (*due, *waiting)}):
        wait(Array(number))
    rows = list(standings(logs, {}))
    _tell(table(rows))
    return exit_code(rows)


@contextlib.contextmanager
def _cleared(logs: Path, cells: Sequence[Cell]) -> Iterator[None]:
    """Removes how the cells ended last time, before a job of theirs can say more; where that is not submitted, they are put back."""
    kept: dict[Path, bytes] = {}
    for cell in cells:
        (logs / cell.name).mkdir(exist_ok=True)
        for path in (logs / cell.name / trace for trace in ("outcome", "job")):
            if path.exists():
                kept[path] = path.read_bytes()
                path.unlink()
    try:
        yield
    except UserError:
        for path, content in kept.items():
            path.write_bytes(content)
        raise


def _cells(settings: JobSettings) -> tuple[Cell, ...]:
    return () if settings.sweep is None else read_sweep(settings.sweep)


def _submit(settings: JobSettings, cells: Sequence[Cell]) -> str:
    """Submits the script, keeps it beside the job's log and returns the job's number."""
    logs = settings.logs_folder
    logs.mkdir(parents=True, exist_ok=True)
    path = logs / f".{settings.name}-{os.getpid()}.sh"  # others may submit a job of that name at the same time
    path.write_text(render_job(settings, Path.cwd(), cells))
    try:
        job = submit(path).job
    except UserError:
        path.unlink()
        raise
    path.rename(logs / f"{job}.sh")
    return job


def _write_sweep(settings: JobSettings, cells: Sequence[Cell]) -> None:
    settings.logs_folder.mkdir(parents=True, exist_ok=True)
    assert settings.runs is not None, "a sweep has a folder of runs"
    sweep = {"runs": str(settings.runs.absolute()), "cells": [cell.name for cell in cells]}
    (settings.logs_folder / SWEEP_NAME).write_text(json.dumps(sweep, indent=1) + "\n")


def _refuse_another_sweep(settings: JobSettings) -> None:
    """Raises UserError where the folder of logs is another sweep's, whose cells may bear the same names."""
    path = settings.logs_folder / SWEEP_NAME
    if path.exists() and settings.runs is not None:
        runs = json.loads(path.read_text())["runs"]
        if runs != str(settings.runs.absolute()):
            raise UserError(
                f"logs={settings.logs_folder}: holds the logs of another sweep, runs={runs}; give each its own, or leave logs out"
            )


def _check(settings: JobSettings, cells: Sequence[Cell]) -> None:
    """Has the dry run of bamboo pretrain look at the arguments, of every cell, and raises UserError for those that do not work."""
    said = dry_run([arguments_of(settings, cell) for cell in cells] if cells else [arguments_of(settings)])
    wrong = [(cells[number].name if cells else "", problem) for number, problem in enumerate(said) if problem]
    if not wrong:
        return
    told = "\n".join(f"{name}: {problem}" if name else problem for name, problem in wrong[:_SHOWN_PROBLEMS])
    more = f"\nand {len(wrong) - _SHOWN_PROBLEMS} more cells" if len(wrong) > _SHOWN_PROBLEMS else ""
    raise UserError(f"the arguments of bamboo pretrain do not work here: {told}{more}\n(--check false submits all the same)")


def _tell(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
