"""The numbers of rows, as curves: what TensorBoard and wandb show, and how a resumed run goes on with them."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..log import LOG_NAME, Row, rows, title

_NO_CURVE = ("start", "stop")  # they say what a run did, not how well


def scalars(row: Row) -> dict[str, float]:
    """Returns title/name → value of the row's finite numbers, but for its step; none of a row that is no point of a curve."""
    if row["kind"] in _NO_CURVE:
        return {}
    curve = title(row)
    return {f"{curve}/{name}": value for name, value in row.items() if name not in ("step", "time") and _is_number(value)}


def written_before(folder: Path, step: int) -> Iterator[dict[str, Any]]:
    """Yields the rows of `log.jsonl` up to `step`, where a resumed run stands, in the order of steps.

    Of rows of one title and step the last counts; rows beyond the step where any start stood do not: their steps were made again.
    """
    if not (folder / LOG_NAME).exists():
        return
    newest: dict[tuple[str, int], dict[str, Any]] = {}
    for row in [*rows(folder), {"kind": "start", "step": step}]:
        if row["kind"] == "start":
            newest = {place: kept for place, kept in newest.items() if kept["step"] <= row["step"]}
        else:
            newest.pop((title(row), row["step"]), None)  # so that the order among titles is that of the later writing
            newest[title(row), row["step"]] = row
    yield from sorted(newest.values(), key=lambda row: int(row["step"]))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
