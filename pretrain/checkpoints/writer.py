"""Writes checkpoints while training goes on: one at a time, on a thread of each rank, with no error lost on any."""

import sys
import threading
from collections.abc import Callable
from types import TracebackType

from ...cli.errors import EXIT_RESUMABLE, BambooError
from ...datasets.ranks import ALONE, Ranks
from .checkpoint import CheckpointFolder
from .meeting import Meeting
from .snapshot import Snapshot


class Writer:
    """Hands checkpoints to a folder; `with` waits at the end, however the block ends. Every rank makes one, and saves at the same points.

    Args:
        folder: takes the checkpoints.
        background: write on a thread, which meets the other ranks' over a process group of its own.
    """

    def __init__(self, folder: CheckpointFolder, ranks: Ranks = ALONE, *, background: bool) -> None:
        self._folder, self._background = folder, background
        self._meeting = Meeting(ranks)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, take: Callable[[], Snapshot]) -> None:
        """Writes a checkpoint, or begins to, once the one before is written; only then is the state copied, by `take`.

        Raises:
            OSError, BambooError: on every rank, when this one (the one before, in the background) could not be written by all.
        """
        self.wait()
        if not self._background:
            self._folder.save(take(), self._meeting)
            return
        self._thread = threading.Thread(target=self._write, args=(take(),), name="bamboo-checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Returns when everything is on disk, all ranks' parts of it.

        Raises:
            OSError, BambooError: on every rank, when the last checkpoint could not be written by all.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.wait()
        except (OSError, BambooError) as failure:
            says_saved = isinstance(error, BambooError) and error.exit_code == EXIT_RESUMABLE
            if error is None or says_saved:
                raise
            sys.stderr.write(f"the last checkpoint could not be written: {failure}\n")  # the block's own error goes on

    def _write(self, snapshot: Snapshot) -> None:
        try:
            self._folder.save(snapshot, self._meeting)
        except BaseException as error:  # noqa: BLE001  # raised again by whoever waits
            self._error = error
