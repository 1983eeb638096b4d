"""What fetching needs of a protocol: a stream of one file from a given byte on."""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import Protocol


@dataclasses.dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a download waits, and how often it tries."""

    stall_s: float = 30.0
    """Seconds without a byte, after which the connection is given up."""
    attempts: int = 5
    """Failures in a row."""
    first_wait_s: float = 1.0
    """Before the second attempt; doubled for each further one."""
    longest_wait_s: float = 120.0
    """Upper bound of a wait; a server that asks for more (Retry-After) ends the download."""
    sleep: Callable[[float], None] = time.sleep
    """Replaced in tests."""


class TransientError(Exception):
    """Trouble that another attempt may not have."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class StaleError(TransientError):
    """Trouble with the bytes so far, which do not belong to what the server has now: the next attempt begins anew."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
    """A file being sent."""

    read: Callable[[int], bytes]
    """Returns up to so many bytes, empty at the end; raises TransientError."""
    start: int
    """The file's byte with which the stream begins: the one asked for, or 0."""
    total: int | None
    """Bytes of the whole file; None: not said."""
    version: str
    """What differs between two contents of the file; empty: not known."""
    marks_its_end: bool
    """Whether a cut would be seen although `total` is not said."""


class Transport(Protocol):
    """Opens files by address."""

    def __call__(self, url: str, offset: int, version: str, patience: Patience) -> contextlib.AbstractContextManager[Opened]:
        """Opens the file from byte `offset` on, or from its beginning where it no longer has that `version`.

        Raises:
            TransientError: for what may pass.
            DataError: for what does not (no such file, no permission, a web page); shows the address without its secrets.
        """
