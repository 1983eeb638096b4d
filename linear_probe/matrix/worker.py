"""Carries out tasks of a matrix in this process, cell by cell; one cell's failure is noted and the next one begins."""

import dataclasses
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from ...cli.errors import BambooError
from ...cli.progress import progress_to
from ...model_zoo.backbone import Backbone, open_backbone
from ..cell_settings import CellSettings
from ..failures import append_failure
from ..probe import Extraction, Splits, open_cell, open_splits, recorded, run
from ..protocols.registry import PROTOCOLS
from ..results import ResultRow
from .tasks import CellState, State, Task, TaskState, write_state

_WRITE_EVERY_S = 1.0

Watcher = Callable[[int, TaskState], None]


class Worker:
    """Runs tasks one after the other and keeps what the next one may need: the last backbone and the sets that were opened."""

    def __init__(self, settings: CellSettings, extraction: Extraction, start: Path, watch: Watcher, retries: int) -> None:
        self._settings, self._extraction, self._out, self._start = settings, extraction, settings.out, start
        self._watch, self._retries = watch, retries
        self._backbone: tuple[str, Backbone] | None = None
        self._splits: dict[tuple[str, Path], Splits] = {}

    def run(self, task: Task) -> TaskState:
        """Runs a task and returns its final state; a cell that another process has in hand is waited for."""
        journal = _Journal(task, self._start, self._watch)
        for at in range(len(task.cells)):
            self._run_cell(task, at, journal)
        return journal.state

    def _run_cell(self, task: Task, at: int, journal: "_Journal") -> None:
        protocol, subset = task.cells[at]
        journal.set(at, state="running")
        started = time.monotonic()
        for attempt in range(self._retries + 1):
            try:
                with progress_to(journal.doing):
                    state, row = self._evaluate(task, protocol, subset)
            except BambooError as error:  # explained: the same would happen again
                reason = str(error)
                break
            # any defect of one cell, out of memory or a broken file system among them, must not end the others
            except Exception as error:  # noqa: BLE001
                reason = f"{type(error).__name__}: {error}"
                sys.stderr.write(f"{task.model} on {task.dataset} ({protocol}, {subset}), attempt {attempt + 1}:\n{traceback.format_exc()}")
            else:
                done = {"value": row.value, "standard_error": row.standard_error, "seconds": time.monotonic() - started}
                journal.set(at, state=state, **done)
                return
        note_failure(self._out, task, protocol, subset, reason)
        journal.set(at, state="failed", reason=reason, seconds=time.monotonic() - started)

    def _evaluate(self, task: Task, protocol: str, subset: str) -> tuple[State, ResultRow]:
        cell = open_cell(
            self._opened_backbone(task),
            task.dataset,
            self._opened_splits(task),
            PROTOCOLS[protocol],
            precision=self._settings.precision,
            seed=self._settings.seed,
            subset=subset,
            model=task.label,
        )
        row = None if self._settings.force else recorded(cell, self._out)
        return ("recorded", row) if row is not None else ("done", run(cell, self._extraction, self._out, force=self._settings.force))

    def _opened_backbone(self, task: Task) -> Backbone:
        if self._backbone is None or self._backbone[0] != task.checkpoint:
            self._backbone = None  # the old one goes before the new one comes: two may not fit on a device
            backbone = open_backbone(task.checkpoint, seed=self._settings.seed, image_size=self._settings.image_size)
            self._backbone = task.checkpoint, backbone
        return self._backbone[1]

    def _opened_splits(self, task: Task) -> Splits:
        key = task.dataset, task.root
        if key not in self._splits:
            self._splits[key] = open_splits(task.dataset, task.root, any_counts=self._settings.any_counts)
        return self._splits[key]


def note_failure(out: Path, task: Task, protocol: str, subset: str, reason: str) -> None:
    """Appends a failed cell to the journal in `out`; where that cannot be, it is said on standard error, and the other cells go on."""
    try:
        append_failure(
            out, model=task.model, checkpoint=task.checkpoint, dataset=task.dataset, protocol=protocol, subset=subset, reason=reason
        )
    except OSError as error:
        sys.stderr.write(f"not in the journal of failures ({error}): {task.model} on {task.dataset} ({protocol}, {subset}): {reason}\n")


class _Journal:
    """Keeps a task's state, in its file and before the watcher; a file that cannot be written does not end the work."""

    def __init__(self, task: Task, start: Path, watch: Watcher) -> None:
        self._number, self._path, self._watch = task.number, start / f"{task.file_name}.json", watch
        self.state = task.waiting
        self._written = 0.0
        self._complained = False
        self._tell()

    def set(self, at: int, **changes: object) -> None:
        """Changes fields of one cell."""
        cells = list(self.state.cells)
        changed: CellState = dataclasses.replace(cells[at], **changes)  # type: ignore[arg-type]  # names and types are CellState's own
        cells[at] = changed
        self.state = dataclasses.replace(self.state, cells=tuple(cells), doing="")
        self._tell()

    def doing(self, text: str) -> None:
        """Says what is being done; the file follows once a second."""
        self.state = dataclasses.replace(self.state, doing=text)
        self._watch(self._number, self.state)
        if time.monotonic() - self._written >= _WRITE_EVERY_S:
            self._tell()

    def _tell(self) -> None:
        self._written = time.monotonic()
        try:
            write_state(self._path, self.state)
        except OSError as error:
            if not self._complained:
                sys.stderr.write(f"{self._path}: how far the task is cannot be written: {error}\n")
            self._complained = True
        self._watch(self._number, self.state)
