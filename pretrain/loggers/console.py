"""Rows for a person who watches."""

import sys
import time
from typing import Any

from ..log import Row, title

_SHOWN = (
    *("loss", "lr", "images_per_s", "data_wait", "mfu", "top1", "top5", "mean_per_class", "error"),
    *("skipped", "loss_expected", "loss_factor", "grad_norm_expected", "grad_norm_factor"),
)


class Console:
    """Prints rows to standard error, with the time left."""

    def __init__(self, total_steps: int) -> None:
        self._total_steps = total_steps
        self._first: tuple[int, float] | None = None

    def write(self, row: Row) -> None:
        """Prints one row."""
        values = " ".join(f"{name} {_short(value)}" for name, value in row.items() if name in _SHOWN)
        sys.stderr.write(f"{title(row)} {row['step']}/{self._total_steps} {values}{self._left(row)}\n")
        sys.stderr.flush()

    def close(self) -> None:
        """Does nothing."""

    def _left(self, row: Row) -> str:
        step, now = int(row["step"]), time.monotonic()
        if self._first is None:
            self._first = (step, now)
        done = step - self._first[0]
        if row["kind"] != "train" or done <= 0:
            return ""
        left_s = (now - self._first[1]) / done * (self._total_steps - step)
        return f" left {left_s // 60:.0f}:{left_s % 60:02.0f}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
