"""Boundaries of a protocol's arithmetic: moments between its steps at which a caller may have a word, or have it end."""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar


def _go_on() -> None:
    pass


_heeded: ContextVar[Callable[[], None]] = ContextVar("heeded", default=_go_on)


def boundary() -> None:
    """Marks a boundary: between iterations of a solver, steps of SGD, blocks of queries. What is raised here ends the arithmetic."""
    _heeded.get()()


@contextlib.contextmanager
def heeded(at_boundary: Callable[[], None]) -> Iterator[None]:
    """Has `at_boundary` called at every boundary inside the block, in this thread; what it raises comes out of the protocol."""
    token = _heeded.set(at_boundary)
    try:
        yield
    finally:
        _heeded.reset(token)
