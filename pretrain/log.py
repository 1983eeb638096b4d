"""The log of a run: rows, who takes them, and `log.jsonl`, which is the record."""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from .settings.evaluators import VAL

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


def read_log(folder: Path, kind: str, name: str | None = None) -> list[dict[str, Any]]:
    """Returns the rows of one kind by step; where a resumed run repeated a step, its later row. Half-written lines are passed over.

    Args:
        name: of an evaluator, whose rows alone are returned. A row of kind eval without a name is one of before they had any: val's.
    """
    newest: dict[tuple[int, str], dict[str, Any]] = {}
    for row in rows(folder):
        if row["kind"] == kind:
            if kind == "eval":
                row.setdefault("name", VAL)
            newest[row["step"], row.get("name", "")] = row
    chosen = (row for row in newest.values() if name is None or row.get("name") == name)
    return sorted(chosen, key=lambda row: int(row["step"]))


def title(row: Row) -> str:
    """Returns the curve that a row is a point of: its kind, and kind/name of an evaluator other than the validation split's."""
    name = row.get("name", VAL)
    return str(row["kind"]) if name == VAL else f"{row['kind']}/{name}"


def rows(folder: Path) -> Iterator[dict[str, Any]]:
    """Yields every row of a run's log, in the order written; half-written lines are passed over."""
    for line in (folder / LOG_NAME).read_bytes().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and {"kind", "step"} <= row.keys():
            yield row


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
