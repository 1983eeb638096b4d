"""The time line in docs/slurm.md is one that the test of a stopped job has written."""

import json
import time
from pathlib import Path

import pytest

from tests.slurm.time_line import read_doc, refuse, time_line


def test_the_doc_shows_what_the_test_writes() -> None:
    """The block between the marks against the course of events that the test on a real cluster asserts of its own time line."""
    assert refuse(read_doc()) == ""


@pytest.mark.parametrize(
    ("was", "becomes", "said"),
    [("stop, step", "halt, step", "no 'run: stop"), ("back into", "not back into", "no 'script: stopped"), ("  run: ", " ", "not lines")],
)
def test_another_course_is_refused(was: str, becomes: str, said: str) -> None:
    """The doc's own time line, altered in one word."""
    assert said in refuse(read_doc().replace(was, becomes))


def test_events_of_one_second_stand_in_their_course(tmp_path: Path) -> None:
    """A signal and the stop that it brings about in the same second, told by the script's log in whole seconds, by the run's in parts."""
    (tmp_path / "log.jsonl").write_text(
        json.dumps({"kind": "stop", "step": 17, "time": time.mktime((2026, 1, 1, 3, 5, 47, 0, 0, -1)) + 0.6})
    )
    log = "2026-01-01 03:05:47 USR1: the ranks are to save and stop\n2026-01-01 03:05:47 stopped after step 17; back into the queue\n"
    told = [line.partition("  ")[2].partition(",")[0].partition(" after")[0] for line in time_line(tmp_path, log, 80).splitlines()]
    assert told == ["script: USR1: the ranks are to save and stop", "run: stop", "script: stopped"]
