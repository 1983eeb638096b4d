"""What a read that has to fetch is doing, told to whoever watches the thread that reads."""

import contextlib
import contextvars
import enum
from collections.abc import Callable, Iterator


class Fetching(enum.IntEnum):
    """What a read that needs a file from elsewhere is doing."""

    DONE = 0
    FETCH = 1
    WAIT = 2  # another thread, process or job fetches the file, or has all the room of the cache


Listener = Callable[[Fetching], None]
"""Takes each change, in the thread that reads; files that are here already change nothing."""

_listener: contextvars.ContextVar[Listener | None] = contextvars.ContextVar("fetch_listener", default=None)


@contextlib.contextmanager
def fetches_to(listener: Listener) -> Iterator[None]:
    """Tells `listener` what the reads inside the block do, in this thread alone: a watchdog names the stage so."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def report(state: Fetching) -> None:
    """Tells this thread's listener, where there is one."""
    listener = _listener.get()
    if listener is not None:
        listener(state)
