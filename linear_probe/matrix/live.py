"""How a matrix stands, to look at: a table that redraws itself on a terminal; elsewhere a line per finished cell, and now and then one that
says what is being done."""

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from .tasks import FINISHED, CellState, TaskState

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

_LINE_EVERY_S = 30.0
_SIGNS = {"waiting": "·", "running": "…", "failed": "failed"}
_STYLES = {"waiting": "dim", "running": "yellow", "failed": "bold red", "done": "green", "recorded": "green dim"}


class Board:
    """Shows the states of all tasks on standard error; use as a context manager and call `show` whenever something may have changed."""

    def __init__(self, states: Sequence[TaskState]) -> None:
        self._states = list(states)
        self._told: set[tuple[int, str, str]] = set()
        self._live: Live | None = None
        self._last_line = time.monotonic()

    def __enter__(self) -> "Board":
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(self.table(), console=Console(stderr=True), refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, number: int, state: TaskState) -> None:
        """Takes the state of task `number`."""
        if state == self._states[number]:
            return
        self._states[number] = state
        if self._live is not None:
            self._live.update(self.table())
            return
        for cell in state.cells:
            if cell.state in FINISHED and (number, cell.protocol, cell.subset) not in self._told:
                self._told.add((number, cell.protocol, cell.subset))
                self._write(f"[{len(self._told)}/{self._num_cells}] {line(state, cell)}")
        if state.doing and time.monotonic() - self._last_line >= _LINE_EVERY_S:
            self._write(f"{state.model} on {state.dataset}: {state.doing}")

    def table(self) -> "RenderableType":
        """Returns models × protocols × subsets down, sets across, and what is being done below."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        datasets = list(dict.fromkeys(state.dataset for state in self._states))
        rows: dict[tuple[str, str, str], dict[str, CellState]] = {}
        for state in self._states:
            for cell in state.cells:
                rows.setdefault((state.model, cell.protocol, cell.subset), {})[state.dataset] = cell
        done = sum(cell.state in FINISHED for state in self._states for cell in state.cells)
        table = Table("model", "protocol", "subset", title=f"{done} of {self._num_cells} cells", title_justify="left")
        for dataset in datasets:
            table.add_column(dataset, justify="right")
        for (model, protocol, subset), cells in rows.items():
            shown = [Text(_sign(cell), style=_STYLES[cell.state]) for cell in (cells[dataset] for dataset in datasets)]
            table.add_row(Text(model), protocol, subset, *shown)
        doing = [Text(f"{state.model} on {state.dataset}: {state.doing}", style="dim") for state in self._states if state.doing]
        return Group(table, *doing)

    def _write(self, text: str) -> None:
        self._last_line = time.monotonic()
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

    @property
    def _num_cells(self) -> int:
        return sum(len(state.cells) for state in self._states)


def line(state: TaskState, cell: CellState) -> str:
    """Returns one line that says what became of a finished cell."""
    name = f"{state.model} on {state.dataset} ({cell.protocol}, {cell.subset})"
    if cell.state == "failed":
        return f"{name}: FAILED: {cell.reason}"
    return f"{name}: {_sign(cell)} %" + (" (recorded before)" if cell.state == "recorded" else f" in {cell.seconds:.0f} s")


def _sign(cell: CellState) -> str:
    if cell.value is None:
        return _SIGNS.get(cell.state, cell.state)
    return f"{100 * cell.value:.2f} ± {100 * (cell.standard_error or 0.0):.2f}"
