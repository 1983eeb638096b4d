"""`failures.jsonl`, beside `results.jsonl`: cells that could not be evaluated, and why."""

import dataclasses
import datetime
import json
from pathlib import Path

from .results import append_line

FILE_NAME = "failures.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """One cell that failed once; a later results row of the same cell outdates it."""

    model: str
    checkpoint: str
    """As it was asked for: a row of the same checkpoint may bear another name, once the backbone can be opened."""
    dataset: str
    protocol: str
    subset: str
    reason: str
    date: str
    """UTC, ISO 8601."""


def append_failure(out: Path, *, model: str, checkpoint: str, dataset: str, protocol: str, subset: str, reason: str) -> None:
    """Appends a failure to the journal in `out`, as `results.append_line`."""
    failure = Failure(
        model=model,
        checkpoint=checkpoint,
        dataset=dataset,
        protocol=protocol,
        subset=subset,
        reason=reason,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    append_line(out / FILE_NAME, dataclasses.asdict(failure))


def read_failures(out: Path) -> list[Failure]:
    """Returns the failures in `out`, oldest first; a torn line, which a crash may leave, is passed over."""
    path = out / FILE_NAME
    found = []
    known = {field.name for field in dataclasses.fields(Failure)}
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        try:
            tree = json.loads(line)
            found.append(Failure(**{key: value for key, value in tree.items() if key in known}))  # a newer version may say more
        except (ValueError, TypeError, AttributeError):
            continue
    return found
