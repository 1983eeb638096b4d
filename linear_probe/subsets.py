"""Few-shot subsets of a training set: shares (`10p`) and shots (`5shot`), by class, seeded, nested, the same on every machine."""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..cli.errors import UserError

_FORM = re.compile(r"(?P<percent>[1-9]\d?|100)p|(?P<shots>[1-9]\d*)shot")
_STREAM = 1 << 192  # of Philox's counter: far from the numbers that split off validation rows


@dataclasses.dataclass(frozen=True)
class Subset:
    """How many rows of each class count: a percentage of them, or a number of shots."""

    name: str
    percent: int | None
    shots: int | None

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole training set."""
        return self.percent == 100

    def count(self, num_rows: int) -> int:
        """Returns how many of a class of `num_rows` ≥ 1 rows count: the shots, or max(1, percentage) rounded half up."""
        return self.shots if self.percent is None else max(1, (2 * num_rows * self.percent + 100) // 200)  # type: ignore[return-value]  # one of the two is given

    def rows(self, labels: npt.NDArray[np.int64], class_names: Sequence[str], seed: int) -> npt.NDArray[np.int64]:
        """Returns the row numbers of the subset, int64, ascending.

        Inside a class the rows with the smallest random numbers count: raw 64-bit output of Philox keyed by `seed`, one number per row of
        the whole set, which numpy guarantees to be the same for all versions and platforms. So a smaller subset lies in every larger one.

        Args:
            labels: int64[N]; rows with a negative label are never in.
            seed: ≥ 0.

        Raises:
            UserError: when a class has fewer rows than shots are asked for.
        """
        if self.is_whole:
            return np.flatnonzero(labels >= 0).astype(np.int64)
        counts = np.bincount(labels[labels >= 0], minlength=len(class_names))
        if self.shots is not None:
            short = [f"{name} has {count}" for name, count in zip(class_names, counts, strict=True) if count < self.shots]
            if short:
                more = f" and {len(short) - 5} more" if len(short) > 5 else ""
                raise UserError(f"subset={self.name}: every class needs {self.shots} rows, but {', '.join(short[:5])}{more}")
        keys = np.random.Philox(key=seed, counter=_STREAM).random_raw(len(labels))
        chosen = []
        for label in np.flatnonzero(counts):
            rows = np.flatnonzero(labels == label)
            chosen.append(rows[np.argsort(keys[rows], kind="stable")[: self.count(len(rows))]])
        return np.sort(np.concatenate(chosen)).astype(np.int64) if chosen else np.empty(0, np.int64)


def parse_subset(text: str) -> Subset:
    """Returns the subset that `text` names: `1p` … `100p`, `1shot`, `2shot`, …

    Raises:
        UserError: for anything else.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise UserError(f"subset={text!r}: must be a percentage 1p … 100p of every class, or 1shot, 2shot, … rows of every class")
    percent, shots = match["percent"], match["shots"]
    return Subset(text, None if percent is None else int(percent), None if shots is None else int(shots))
