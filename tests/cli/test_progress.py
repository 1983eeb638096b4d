"""Progress off and on a terminal, with a clock of our own in place of the machine's."""

import io
import sys
import time

import pytest

from bamboo.cli import progress
from bamboo.cli.progress import Progress, progress_to, track


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """Text that claims to be on a screen."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that `Progress` reads."""
    ours = Clock()
    monkeypatch.setattr(time, "monotonic", ours)
    return ours


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    out, err = capsys.readouterr()
    assert not out
    return err.splitlines()


def test_off_a_terminal_there_is_a_line_every_ten_seconds_and_one_at_the_end(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """100 units at 4 a second: lines after 10 s and 20 s, with rate and time left, and the last."""
    with Progress(100, "pack") as bar:
        for _ in range(25):
            clock.now += 1.0
            bar.advance(4)
    assert lines(capsys) == [
        "pack: 40/100 images, 4.0 images/s, 15 s left",
        "pack: 80/100 images, 4.0 images/s, 5 s left",
        "pack: 100/100 images, 4.0 images/s",
    ]


def test_resumed_work_does_not_enter_the_rate(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """60 units done before, 20 in 10 s now: 2 a second, and 10 s for the 20 left."""
    with Progress(100, "pack", "files") as bar:
        bar.resume(60)
        clock.now += 10.0
        bar.advance(20)
        bar.advance(20)
    assert lines(capsys) == ["pack: 80/100 files, 2.0 files/s, 10 s left", "pack: 100/100 files, 4.0 files/s"]


def test_on_a_terminal_resumed_work_does_not_enter_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """tqdm's own rate, (n - initial) / elapsed, after 90 of 100 units were resumed and 5 done in this run."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with Progress(100, "pack") as bar:
        bar.resume(90)
        bar.advance(5)
        shown = bar._bar
        assert shown is not None
        state = shown.format_dict
        assert (state["n"], state["initial"], state["total"]) == (95, 90, 100)
        assert state["rate"] is None or state["rate"] <= 5 / 1e-9
    assert "90%" in screen.getvalue()
    assert "95%" in screen.getvalue()


def test_a_failure_leaves_no_line_of_success(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """An exception inside the block: nothing is printed as if it had ended."""
    with pytest.raises(ValueError, match="broken"), Progress(10, "pack") as bar:
        bar.advance()
        raise ValueError("broken")
    assert lines(capsys) == []


def test_a_silent_progress_prints_nothing(clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ranks other than 0 count without a word, on a terminal too."""
    for stream in (sys.stderr, Terminal()):
        monkeypatch.setattr(sys, "stderr", stream)
        with Progress(10, "pack", enabled=False) as bar:
            clock.now += 60.0
            bar.advance(10)
    assert lines(capsys) == []


def test_nothing_to_do_is_no_division_by_zero(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """No units, no time."""
    with Progress(0, "pack"):
        pass
    assert lines(capsys) == ["pack: 0/0 images, 0.0 images/s"]


def test_track_yields_what_it_is_given(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Items in order, and one line at the end."""
    assert list(track("abc", 3, "spell", "letters")) == ["a", "b", "c"]
    assert lines(capsys) == [f"spell: 3/3 letters, {3 / 1e-9:.1f} letters/s"]
    assert progress.T  # the module is imported as users import it


def test_a_listener_hears_it_instead(clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Inside `progress_to` every advance is told, on a terminal too, and nothing is written; a disabled one stays silent."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    heard: list[str] = []
    with progress_to(heard.append):
        with Progress(4, "packing") as work:
            clock.now += 2.0
            work.advance(2)
        with Progress(4, "silent", enabled=False) as silent:
            silent.advance()
    assert heard == ["packing: 2/4 images, 1.0 images/s, 2 s left"]
    assert screen.getvalue() == ""
    with Progress(1, "after"):
        pass
    assert "after" in screen.getvalue()
