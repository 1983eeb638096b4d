"""Writes checkpoints while training goes on: one at a time, on a thread, with no error lost."""

import sys
import threading
from types import TracebackType

from ..cli.errors import EXIT_RESUMABLE, BambooError
from .checkpoint import Checkpoint, CheckpointFolder


class Writer:
    """Hands checkpoints to a folder; `with` waits at the end, however the block ends.

    Args:
        folder: takes the checkpoints.
        background: write on a thread; the tensors of a checkpoint must then be nobody else's.
    """

    def __init__(self, folder: CheckpointFolder, *, background: bool) -> None:
        self._folder, self._background = folder, background
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint, or begins to, once the one before is written.

        Raises:
            OSError: when this one (the one before, in the background) could not be written.
        """
        if not self._background:
            self._folder.save(checkpoint)
            return
        self.wait()
        self._thread = threading.Thread(target=self._write, args=(checkpoint,), name="bamboo-checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Returns when everything is on disk.

        Raises:
            OSError: when the last checkpoint could not be written.
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
        except OSError as failure:
            says_saved = isinstance(error, BambooError) and error.exit_code == EXIT_RESUMABLE
            if error is None or says_saved:
                raise
            sys.stderr.write(f"the last checkpoint could not be written: {failure}\n")  # the block's own error goes on

    def _write(self, checkpoint: Checkpoint) -> None:
        try:
            self._folder.save(checkpoint)
        except BaseException as error:  # noqa: BLE001  # raised again by whoever waits
            self._error = error
