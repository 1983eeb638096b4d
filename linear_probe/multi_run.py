"""The verb `multi_run`: every model on every set, one table.

    bamboo multi_run --models runs/tiny timm:resnet50.a1_in1k --datasets cifar10 pet dtd --data-root data
    bamboo multi_run --config configs/linear_probe/100p.yaml --models mine=runs/mine --launcher slurm --slurm.partition gpu

A model is a checkpoint as `bamboo probe` takes it, or LABEL=CHECKPOINT. A cell (model, set, protocol, subset) that has its row is skipped,
one that failed is tried again, a killed run goes on; a cell that fails does not stop the others, but the exit code is 1 then.
"""

import contextlib
import dataclasses
import datetime
import secrets
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from ..cli.arguments import parse
from ..cli.config import settings, to_yaml
from ..cli.errors import EXIT_DONE, EXIT_FAILURE, BambooError, UserError
from ..cli.main import run
from ..slurm.settings import SlurmSettings
from .cell_settings import CellSettings
from .matrix.tasks import FINISHED, Task, TaskState, tasks_of

if TYPE_CHECKING:
    from .matrix.live import Board
    from .matrix.worker import Watcher

TEN_SETS = ("cifar10", "cifar100", "food", "pet", "flower", "sun", "car", "dtd", "caltech", "aircraft")


@settings
class MultiRunSettings(CellSettings):
    """Everything `bamboo multi_run` can be told."""

    models: list[str]
    """Checkpoints, each as CHECKPOINT or LABEL=CHECKPOINT."""
    datasets: tuple[str, ...] = TEN_SETS
    """Names of sets."""
    data_root: Path
    """Folder that holds the sets, each in a folder of its name or as torchvision lays them."""
    roots: dict[str, Path] = dataclasses.field(default_factory=dict)
    """Folders of sets that lie elsewhere: {pet: /data/pets}."""
    protocol: tuple[str, ...] = ("standard",)
    """Names of protocols; each has a table of its own."""
    subset: tuple[str, ...] = ("100p",)
    """Parts of the training sets: 100p, 10p, 1p, 5shot."""
    launcher: Literal["local", "slurm"] = "local"
    """local: here; slurm: as one array job, a task per model and set."""
    processes: Annotated[int, Field(ge=0)] = 1
    """Local worker processes: 1 is this one, 0 one per GPU."""
    retries: Annotated[int, Field(ge=0, le=10)] = 1
    """How often a cell that failed without an explanation is tried again."""
    slurm: SlurmSettings = SlurmSettings()
    """Resources of one task of the array."""
    wait: bool = True
    """With slurm: stay, show the table, and end when the array does."""
    tasks: tuple[int, ...] = ()
    """Only these tasks of the matrix, by number (--dry-run lists them); none: all."""
    start: Path | None = None
    """Folder where a start of the matrix keeps its states; given to workers."""

    def problems(self) -> list[str]:
        """Returns what is wrong across fields."""
        wrong = [f"{name}: give at least one" for name in ("models", "datasets", "protocol", "subset") if not getattr(self, name)]
        for name in ("models", "datasets", "protocol", "subset"):
            values = list(getattr(self, name))
            wrong += [
                f"{name}: {value!r} is given {values.count(value)} times" for value in dict.fromkeys(values) if values.count(value) > 1
            ]
        count = len(self.models) * len(self.datasets)
        wrong += [f"tasks={number}: the matrix has tasks 0 to {count - 1}" for number in self.tasks if not 0 <= number < count]
        return wrong


SETTINGS = {"": MultiRunSettings}


def main(argv: Sequence[str]) -> int:
    """Runs `bamboo multi_run` and returns its exit code: 1 when a cell failed."""
    config = parse(MultiRunSettings, argv, prog="bamboo multi_run", doc=__doc__ or "")
    tasks = _tasks(config)
    if config.dry_run:
        return _dry_run(config, tasks)
    from .matrix.live import Board

    start = config.start or _new_start(config.out)
    states = {task.number: task.waiting for task in tasks}
    with Board(list(states.values())) as board, _ended_by_signals():
        _carry_out(config, tasks, start, board, states)
    if config.start is not None:
        return EXIT_DONE  # a worker: whoever started it reads the states, and makes the table
    return _conclude(config, states)


def _new_start(out: Path) -> Path:
    """Returns a folder of its own for this start, so that two starts in one `out` do not meet."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    return out / "starts" / f"{now}-{secrets.token_hex(3)}"


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Lets SIGTERM unwind this process like an interrupt, so that its workers end with it."""

    def end(number: int, frame: FrameType | None) -> None:
        del frame
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _tasks(config: MultiRunSettings) -> list[Task]:
    """Returns the tasks that are asked for, with every name in them checked."""
    from ..datasets.downstream.sets import describe  # torch is imported only once the settings are known to be right
    from .protocols.registry import describe_protocol
    from .subsets import parse_subset

    for dataset in (*config.datasets, *config.roots):
        describe(dataset)
    for protocol in config.protocol:
        describe_protocol(protocol)
    for subset in config.subset:
        parse_subset(subset)
    tasks = tasks_of(config.models, config.datasets, config.protocol, config.subset, config.data_root, config.roots)
    names = [(task.model, task.dataset) for task in tasks]
    twice = sorted({model for model, dataset in names if names.count((model, dataset)) > 1})
    if twice:
        raise UserError(f"models: {', '.join(twice)} names two models; give them labels, LABEL=CHECKPOINT")
    return [task for task in tasks if not config.tasks or task.number in config.tasks]


def _carry_out(config: MultiRunSettings, tasks: Sequence[Task], start: Path, board: "Board", states: dict[int, TaskState]) -> None:
    order = {task.number: at for at, task in enumerate(tasks)}

    def watch(number: int, state: TaskState) -> None:
        states[number] = state
        board.show(order[number], state)

    if config.launcher == "local" and config.processes == 1:
        _here(config, tasks, start, watch)
        return
    from ..datasets.atomic import write_text
    from .matrix.fleet import MATRIX_NAME, Fleet, run_local, run_slurm, slots_for

    slots = slots_for(config.processes, config.device) if config.launcher == "local" else []
    write_text(start / MATRIX_NAME, to_yaml(config))
    fleet = Fleet(start=start, out=config.out, tasks=tasks, watch=watch)
    if config.launcher == "slurm":
        run_slurm(fleet, config.slurm, name="multi_run", watched=config.wait, told=sys.stderr.write)
    else:
        run_local(fleet, slots, config.retries)


def _here(config: MultiRunSettings, tasks: Sequence[Task], start: Path, watch: "Watcher") -> None:
    from ..datasets.ranks import start_ranks
    from .matrix.worker import Worker
    from .probe import Extraction

    ranks = start_ranks(config.device)
    ranks.share_cores(config.workers)
    extraction = Extraction(cache=config.cache, batch_size=config.batch_size, workers=config.workers, device=ranks.device)
    worker = Worker(config, extraction, start, watch, config.retries)
    for task in tasks:
        worker.run(task)


def _dry_run(config: MultiRunSettings, tasks: Sequence[Task]) -> int:
    """Lists the tasks, which of their cells have a row under that name, and what keeps a set from being opened; loads no model."""
    dates = _dates(config.out)
    found = {dataset: _set_problem(config, task) for dataset, task in {task.dataset: task for task in tasks}.items()}
    for task in tasks:
        cells = []
        for cell in task.cells:
            date = dates.get((task.model, task.dataset, *cell)) or dates.get((task.checkpoint, task.dataset, *cell))
            cells.append(" ".join(cell) + (f" [row of {date}]" if date else ""))
        problem = f"; cannot work: {found[task.dataset]}" if found[task.dataset] else ""
        sys.stdout.write(f"{task.number:4d}  {task.model} on {task.dataset} ({task.root}): {', '.join(cells)}{problem}\n")
    if config.launcher == "slurm":
        from .matrix.fleet import Fleet, slurm_script

        fleet = Fleet(start=config.out / "starts" / "START", out=config.out, tasks=tasks, watch=lambda *_: None)
        sys.stdout.write("\n" + slurm_script(fleet, config.slurm, name="multi_run"))
    return EXIT_FAILURE if any(found.values()) else EXIT_DONE


def _dates(out: Path) -> dict[tuple[str, str, str, str], str]:
    """Returns the date of the last row of each (model, set, protocol, subset), the model by its name and by the checkpoint it came from."""
    from .results import FILE_NAME, latest, read_rows

    rows = latest(read_rows(out / FILE_NAME).rows).values()
    named = {row.cell: row.date for row in rows}
    return {(row.details.get("checkpoint", row.model), *row.cell[1:]): row.date for row in rows} | named


def _set_problem(config: MultiRunSettings, task: Task) -> str:
    from .probe import open_splits

    try:
        open_splits(task.dataset, task.root, any_counts=config.any_counts)
    except BambooError as error:
        return str(error)
    return ""


def _conclude(config: MultiRunSettings, states: Mapping[int, TaskState]) -> int:
    """Prints the table and the list of failed cells, and returns the exit code."""
    from .matrix.live import line
    from .report.cli import collect, markdown_tables

    if any(cell.state in FINISHED for state in states.values() for cell in state.cells):
        try:
            sys.stdout.write(markdown_tables(collect([config.out])))
        except (OSError, UserError) as error:  # what failed is told all the same
            sys.stderr.write(f"no table: {error}\n")
    failed = [line(state, cell) for state in states.values() for cell in state.cells if cell.state == "failed"]
    waiting = sum(cell.state not in FINISHED for state in states.values() for cell in state.cells)
    sys.stderr.writelines(f"{text}\n" for text in failed)
    if failed:
        sys.stderr.write(f"{len(failed)} cells failed; the same command tries them again\n")
    if waiting:
        sys.stderr.write(f"{waiting} cells are in the queue; the table: bamboo report {config.out}\n")
    return EXIT_FAILURE if failed else EXIT_DONE


if __name__ == "__main__":
    raise SystemExit(run("multi_run", sys.argv[1:]))
