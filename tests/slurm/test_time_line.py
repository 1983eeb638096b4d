"""The time line in docs/slurm.md is one that the test of a stopped job has written."""

import pytest

from tests.slurm.time_line import read_doc, refuse


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
