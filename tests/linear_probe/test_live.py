"""The board of a matrix, on a terminal and in a log, with a clock of our own."""

import dataclasses
import io
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bamboo.linear_probe.matrix.live import Board
from bamboo.linear_probe.matrix.tasks import TaskState, tasks_of


class Terminal(io.StringIO):
    """Text that claims to be on a screen."""

    def isatty(self) -> bool:
        return True


def waiting() -> list[TaskState]:
    return [task.waiting for task in tasks_of(["m", "n"], ["pet"], ["knn", "clip"], ["100p"], Path(), {})]


def with_cell(task: TaskState, at: int, **changes: Any) -> TaskState:
    cells = list(task.cells)
    cells[at] = dataclasses.replace(cells[at], **changes)
    return dataclasses.replace(task, cells=tuple(cells), doing="")


def test_a_log_gets_a_line_per_cell_and_now_and_then_progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Each finished cell is told once, whatever is shown after it; what is being done at most every 30 s."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    first, second = waiting()
    with Board([first, second]) as board:
        board.show(0, dataclasses.replace(first, doing="features: 1/9"))
        now[0] += 31.0
        board.show(0, dataclasses.replace(first, doing="features: 5/9"))
        now[0] += 5.0
        board.show(0, dataclasses.replace(first, doing="features: 6/9"))
        done = with_cell(first, 0, state="done", value=0.5, standard_error=0.01, seconds=2.0)
        board.show(0, done)
        board.show(0, with_cell(done, 1, state="failed", reason="no room"))
        board.show(1, with_cell(second, 1, state="recorded", value=0.25, standard_error=0.02))
    assert capsys.readouterr().err.splitlines() == [
        "m on pet: features: 5/9",
        "[1/4] m on pet (knn, 100p): 50.00 ± 1.00 % in 2 s",
        "[2/4] m on pet (clip, 100p): FAILED: no room",
        "[3/4] n on pet (clip, 100p): 25.00 ± 2.00 % (recorded before)",
    ]


def test_a_terminal_gets_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models and protocols down, sets across, what is being done below; hostile markup in a name is text."""
    first, second = waiting()
    named = dataclasses.replace(first, model="[red]m", doing="features: 5/9")
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with Board([named, second]) as board:
        board.show(0, with_cell(named, 0, state="done", value=0.5, standard_error=0.01))
        board.show(1, dataclasses.replace(second, doing="features: 5/9"))
        shown = io.StringIO()
        Console(file=shown, width=100).print(board.table())
    text = shown.getvalue()
    assert "1 of 4 cells" in text
    assert "[red]m" in text
    assert "50.00 ± 1.00" in text
    assert "n on pet: features: 5/9" in text
    assert screen.getvalue()
