"""TensorBoard."""

from pathlib import Path

from ...cli.errors import missing_extra
from ..log import Row
from .scalars import scalars, written_before


class TensorBoard:
    """Writes numbers as scalars title/name; one curve over all starts of a run.

    A start at step s has TensorBoard forget (`purge_step`) what an earlier one wrote of steps beyond s, which are made again; where
    nothing was written before, the rows of the log up to s come first. Every row is flushed: a kill loses none.
    """

    def __init__(self, folder: Path, step: int) -> None:
        """Goes on after `step`.

        Raises:
            UserError: when TensorBoard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise missing_extra("tensorboard", "tensorboard") from None
        events = folder / "tensorboard"
        is_new = not any(events.glob("events.out.tfevents.*"))
        self._writer = SummaryWriter(str(events), purge_step=None if is_new else step + 1)
        for row in written_before(folder, step) if is_new else ():
            self._add(row)

    def write(self, row: Row) -> None:
        """Writes the row's numbers."""
        self._add(row)
        self._writer.flush()

    def close(self) -> None:
        """Flushes and closes."""
        self._writer.close()

    def _add(self, row: Row) -> None:
        for name, value in scalars(row).items():
            self._writer.add_scalar(name, value, row["step"])
