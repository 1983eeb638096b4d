"""One logger for everything: JSON lines (the record), the console, TensorBoard and wandb."""

import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from ..cli.errors import missing_extra
from .evaluator_config import VAL

LOG_NAME = "log.jsonl"

Row = Mapping[str, Any]


class Logger(Protocol):
    """Takes rows: {"kind": "train" | "eval" | …, "step": int, …}."""

    def write(self, row: Row) -> None:
        """Takes one row."""

    def close(self) -> None:
        """Flushes."""


class Loggers:
    """Several loggers as one; none at all on the ranks that do not speak."""

    def __init__(self, loggers: Sequence[Logger]) -> None:
        self._loggers = loggers

    def write(self, row: Row) -> None:
        """Writes the row to each."""
        for logger in self._loggers:
            logger.write(row)

    def close(self) -> None:
        """Closes each."""
        for logger in self._loggers:
            logger.close()


class JsonLines:
    """Appends rows to `log.jsonl`, one write each. A resumed run appends; `read_log` lets later rows of a step win."""

    def __init__(self, folder: Path) -> None:
        path = folder / LOG_NAME
        self._file = path.open("ab", buffering=0)
        if path.stat().st_size and not _ends_with_newline(path):
            self._file.write(b"\n")  # a killed run may have left half a row

    def write(self, row: Row) -> None:
        """Appends one row."""
        self._file.write((json.dumps({**row, "time": round(time.time(), 3)}) + "\n").encode())

    def close(self) -> None:
        """Makes what was written last."""
        os.fsync(self._file.fileno())
        self._file.close()


class Console:
    """Prints rows for a person, with the time left."""

    def __init__(self, total_steps: int) -> None:
        self._total_steps = total_steps
        self._first: tuple[int, float] | None = None

    def write(self, row: Row) -> None:
        """Prints one row."""
        values = " ".join(f"{name} {_short(value)}" for name, value in row.items() if name in _SHOWN)
        sys.stderr.write(f"{' '.join(_title(row))} {row['step']}/{self._total_steps} {values}{self._left(row)}\n")
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


class TensorBoard:
    """Writes numbers as TensorBoard scalars."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise missing_extra("tensorboard", "tensorboard") from None
        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def write(self, row: Row) -> None:
        """Writes the row's numbers under kind/name."""
        for name, value in _numbers(row):
            self._writer.add_scalar("/".join([*_title(row), name]), value, row["step"])

    def close(self) -> None:
        """Flushes and closes."""
        self._writer.close()


class Wandb:
    """Writes numbers to a wandb run kept in the run folder; offline unless asked otherwise."""

    def __init__(self, folder: Path, mode: Literal["offline", "online"], config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError:
            raise missing_extra("wandb", "wandb") from None
        identity = folder.resolve().name
        self._run = wandb.init(project="bamboo", id=identity, resume="allow", mode=mode, dir=str(folder), config=dict(config))

    def write(self, row: Row) -> None:
        """Logs the row's numbers under kind/name."""
        self._run.log({"/".join([*_title(row), name]): value for name, value in _numbers(row)}, step=row["step"])

    def close(self) -> None:
        """Ends the run."""
        self._run.finish()


def read_log(folder: Path, kind: str, name: str | None = None) -> list[dict[str, Any]]:
    """Returns the rows of one kind by step; where a resumed run repeated a step, its later row. Half-written lines are passed over.

    Args:
        name: of an evaluator, whose rows alone are returned. A row of kind eval without a name is one of before they had any: val's.
    """
    rows: dict[tuple[int, str], dict[str, Any]] = {}
    for row in _rows((folder / LOG_NAME).read_bytes().splitlines()):
        if row.get("kind") == kind:
            if kind == "eval":
                row.setdefault("name", VAL)
            rows[row["step"], row.get("name", "")] = row
    chosen = (row for row in rows.values() if name is None or row.get("name") == name)
    return sorted(chosen, key=lambda row: row["step"])


def _rows(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


_SHOWN = ("loss", "lr", "images_per_s", "data_wait", "mfu", "top1", "top5", "mean_per_class", "error")


def _title(row: Row) -> list[str]:
    """Returns the kind, and an evaluator's name; of the validation split numbers go by the kind alone."""
    return [row["kind"], *([row["name"]] if row.get("name", VAL) != VAL else [])]


def _numbers(row: Row) -> Iterator[tuple[str, float]]:
    for name, value in row.items():
        if name != "step" and isinstance(value, int | float) and math.isfinite(value):
            yield name, value


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
