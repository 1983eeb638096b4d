"""Progress of long work: a bar with rate and time left on a terminal, plain lines elsewhere."""

import contextlib
import contextvars
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

_LINE_EVERY_S = 10.0

Listener = Callable[[str], None]
"""Takes a line that says how far the work is, `what: 512/60000 images, 310.2 images/s, 192 s left`."""

_listener: contextvars.ContextVar[Listener | None] = contextvars.ContextVar("listener", default=None)


@contextlib.contextmanager
def progress_to(listener: Listener) -> Iterator[None]:
    """Hands all progress that starts inside the block to `listener`, for a display that shows it among other things."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


class Progress:
    """Counts `total` units of work on standard error; use as a context manager and call `advance`.

    On a terminal it is a tqdm bar; elsewhere (a log file, a SLURM job) it is at most one plain line every 10 s and one at the end.
    """

    def __init__(self, total: int, what: str, unit: str = "images", *, enabled: bool = True) -> None:
        self._total, self._what, self._unit, self._enabled = total, what, unit, enabled
        self._done, self._resumed = 0, 0
        self._started = self._last_line = time.monotonic()
        self._listener = _listener.get() if enabled else None
        terminal = enabled and self._listener is None and sys.stderr.isatty()
        self._bar = tqdm(total=total, desc=what, unit=f" {unit}", dynamic_ncols=True) if terminal else None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._enabled and self._listener is None and kind is None:
            self._line()

    def resume(self, done: int) -> None:
        """Counts work that an earlier run had done; it does not enter the rate."""
        self._resumed += done
        self._done += done
        if self._bar is not None:
            self._bar.initial = self._bar.n = self._bar.last_print_n = self._done
            self._bar.refresh()

    def advance(self, count: int = 1) -> None:
        """Counts `count` more units."""
        self._done += count
        if self._listener is not None:
            self._listener(self._text())
        elif self._bar is not None:
            self._bar.update(count)
        elif self._enabled and time.monotonic() - self._last_line >= _LINE_EVERY_S:
            self._line()

    def _line(self) -> None:
        self._last_line = time.monotonic()
        sys.stderr.write(self._text() + "\n")
        sys.stderr.flush()

    def _text(self) -> str:
        rate = (self._done - self._resumed) / max(time.monotonic() - self._started, 1e-9)
        left = f", {(self._total - self._done) / rate:.0f} s left" if rate > 0 and self._done < self._total else ""
        return f"{self._what}: {self._done}/{self._total} {self._unit}, {rate:.1f} {self._unit}/s{left}"


def track(items: Iterable[T], total: int, what: str, unit: str = "images", *, enabled: bool = True) -> Iterator[T]:
    """Yields `items` and shows the progress through them."""
    with Progress(total, what, unit, enabled=enabled) as progress:
        for item in items:
            yield item
            progress.advance()
