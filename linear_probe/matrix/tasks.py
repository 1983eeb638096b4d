"""The matrix of `multi_run`: its cells, the tasks they run in, and how far each of them is.

A task is one model on one set: its cells (protocols × subsets) share the features. What is known of a task stands in a small file of its
own, `NUMBER-MODEL-SET.json` in the folder of the start, which whoever runs the task rewrites and whoever watches reads.
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ...datasets.atomic import write_json

State = Literal["waiting", "running", "done", "recorded", "failed"]

FINISHED: frozenset[State] = frozenset(("done", "recorded", "failed"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CellState:
    """How far one cell is."""

    protocol: str
    subset: str
    state: State = "waiting"
    value: float | None = None
    """The set's metric in [0, 1], with its standard error, once the cell is done or was recorded."""
    standard_error: float | None = None
    reason: str = ""
    """Why it failed."""
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskState:
    """How far a task is."""

    model: str
    dataset: str
    cells: tuple[CellState, ...]
    doing: str = ""
    """Progress of the work at hand."""

    @property
    def is_finished(self) -> bool:
        """Whether every cell is done, was recorded, or failed."""
        return all(cell.state in FINISHED for cell in self.cells)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One model on one set, under every protocol and on every subset that was asked for."""

    number: int
    model: str
    """The name to show: a label of the user's, else the checkpoint as it was given."""
    label: str | None
    """The user's name for the model, `LABEL=CHECKPOINT`."""
    checkpoint: str
    dataset: str
    root: Path
    cells: tuple[tuple[str, str], ...]
    """(protocol, subset) of each cell."""

    @property
    def waiting(self) -> TaskState:
        """Returns the state before anything was done."""
        cells = tuple(CellState(protocol=protocol, subset=subset) for protocol, subset in self.cells)
        return TaskState(model=self.model, dataset=self.dataset, cells=cells)

    @property
    def file_name(self) -> str:
        """Name of the task's files, without a suffix."""
        return f"{self.number:04d}-{_slug(self.model)}-{_slug(self.dataset)}"


def tasks_of(
    models: Sequence[str],
    datasets: Sequence[str],
    protocols: Sequence[str],
    subsets: Sequence[str],
    data_root: Path,
    roots: dict[str, Path],
) -> list[Task]:
    """Returns the tasks of a matrix, numbered model by model; the same matrix has the same numbers everywhere.

    Args:
        models: checkpoints, each as `CHECKPOINT` or `LABEL=CHECKPOINT`.
        data_root: a set lies in the folder of its name there (`folder:NAME`: of NAME), or else in `data_root` itself.
        roots: set → folder, for those that lie elsewhere.
    """
    cells = tuple((protocol, subset) for protocol in protocols for subset in subsets)
    tasks: list[Task] = []
    for model in models:
        label, checkpoint = split_label(model)
        for dataset in datasets:
            inside = data_root / dataset.rpartition(":")[2]
            root = roots.get(dataset, inside if inside.is_dir() else data_root)
            shown = label or checkpoint
            tasks.append(Task(number=len(tasks), model=shown, label=label, checkpoint=checkpoint, dataset=dataset, root=root, cells=cells))
    return tasks


def split_label(model: str) -> tuple[str | None, str]:
    """Returns (label, checkpoint) of `LABEL=CHECKPOINT`; without a label, (None, checkpoint)."""
    label, equals, checkpoint = model.partition("=")
    return (label, checkpoint) if equals and label and "/" not in label else (None, model)


def write_state(path: Path, state: TaskState) -> None:
    """Writes a state atomically."""
    write_json(path, dataclasses.asdict(state))


def read_state(path: Path) -> TaskState | None:
    """Returns the state in a file; None where there is none, or none that can be read."""
    try:
        tree: dict[str, Any] = json.loads(path.read_bytes())
        cells = tuple(CellState(**cell) for cell in tree.pop("cells"))
        return TaskState(**tree, cells=cells)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[-60:].strip("-.")
