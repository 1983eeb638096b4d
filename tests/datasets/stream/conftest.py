"""What the tests of the stream share."""

from collections.abc import Callable
from typing import Any

import pytest

from bamboo.datasets.stream.loader import load_batches
from tests.datasets.stream.fakes import Row, rows_of


@pytest.fixture
def make_rows() -> Callable[..., list[list[Row]]]:
    """Returns a function that makes the first batches of a source and returns the rows of each."""

    def make(source: Any, num_batches: int, start: int = 0, **options: Any) -> list[list[Row]]:
        options = {"workers": 0, **options}
        return [rows_of(batch) for batch in load_batches(source, range(start, start + num_batches), **options)]

    return make
