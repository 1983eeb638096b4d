"""What becomes of a sample that cannot be read: the stream stops, or the next one of the plan stands in and the slot is written down.

Which sample stands in is a function of the plan alone, so the batches stay the same on any number of ranks and workers.
"""

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

_HEADER = "place\tsample\tname\treason\treplaced_by\n"


@dataclasses.dataclass(frozen=True)
class BadSamples:
    """The policy: `max_in_a_row` 0 stops at the first unreadable sample; N > 0 replaces, and stops at N in a row in the plan."""

    max_in_a_row: int = 0
    setting: str = "data.max_bad_samples"
    """What the message calls `max_in_a_row`."""

    @property
    def replaces(self) -> bool:
        """Whether an unreadable sample is replaced."""
        return self.max_in_a_row > 0


FAIL = BadSamples()


class Replaced(NamedTuple):
    """A slot of the global order whose sample could not be read."""

    place: int
    sample: int
    name: str  # shard:key
    reason: str
    replaced_by: int  # sample id; -1: by nothing, the row is invalid

    @property
    def line(self) -> str:
        """One tab-separated line."""
        texts = (" ".join(text.split()) for text in (self.name, self.reason))
        return "\t".join([str(self.place), str(self.sample), *texts, str(self.replaced_by)]) + "\n"


class BadSampleList:
    """A file of replaced slots, a tab-separated line each under a header; one per rank, made when there is something to list. A context
    manager.

    Lines are appended by one write, so a kill leaves whole lines; what the file, or one of `others`, holds already is not listed
    again, so a resumed run may meet the same slots.
    """

    def __init__(self, path: Path, others: Iterable[Path] = ()) -> None:
        """Reads what `path` and `others` list; `others` are those of other ranks, or of the same job on another number of them."""
        self._path, self._descriptor = path, -1
        self._listed = {slot for file in (path, *others) if file.exists() for slot in _slots(file)}

    def __enter__(self) -> "BadSampleList":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close()

    def add(self, slots: Iterable[Replaced]) -> int:
        """Lists what is new among `slots` and returns how many that were; raises OSError, naming the file, where it cannot be written."""
        new = {(slot.place, slot.sample): slot for slot in slots if (slot.place, slot.sample) not in self._listed}
        if new:
            lines = "".join(slot.line for slot in new.values())
            self._write(lines.encode("utf-8", "surrogateescape"))
            self._listed |= new.keys()
        return len(new)

    def _write(self, data: bytes) -> None:
        """Writes all of it; what a full disk cuts short, the next line does not follow on the same line."""
        try:
            descriptor = self._open()
            while data:
                data = data[os.write(descriptor, data) :]
        except OSError as error:
            self._close()
            raise OSError(error.errno, error.strerror, str(self._path)) from None

    def _open(self) -> int:
        """Returns the file, ready for the next whole line."""
        if self._descriptor < 0:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            size = os.fstat(self._descriptor).st_size
            if size == 0:
                os.write(self._descriptor, _HEADER.encode())
            elif os.pread(self._descriptor, 1, size - 1) != b"\n":  # a line that a full disk cut short
                os.write(self._descriptor, b"\n")
        return self._descriptor

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _slots(file: Path) -> Iterable[tuple[int, int]]:
    """Yields (place, sample) of every whole line."""
    with file.open(encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            cells = line.rstrip("\n").split("\t")
            if len(cells) == len(Replaced._fields) and cells[0].isdigit() and cells[1].isdigit():
                yield int(cells[0]), int(cells[1])
