"""What `bamboo demo` found out: the rows of its probes, and how far one is ahead of another on the same test images."""

import dataclasses
import math
from pathlib import Path

import numpy as np

from ..cli.errors import DataError
from ..linear_probe.results import FILE_NAME, ResultRow, latest, read_rows

TABLES = {
    "unseen": "digits 5 to 9, never seen in pretraining",
    "all": "all ten digits",
    "centred": "the digits 5 to 9 once more, all in the middle",
}
PRETRAINED, UNTRAINED, PIXELS = "pretrained", "untrained", "pixels"
LABELS = {PRETRAINED: "pretrained backbone", UNTRAINED: "same network, untrained", PIXELS: "raw pixels"}


@dataclasses.dataclass(frozen=True)
class Lead:
    """By how much one backbone's top-1 accuracy exceeds another's."""

    value: float
    standard_error: float
    """Of the paired difference: √(variance of the difference per test image / number of test images)."""

    def __str__(self) -> str:
        """The lead in points, `2.1 ± 0.7`."""
        return f"{100 * self.value:.1f} ± {100 * self.standard_error:.1f}"


class Table:
    """The probes in one folder: a row for each of `LABELS`.

    Raises:
        DataError: when a row is missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        found = {row.model.partition(":")[0]: row for row in latest(read_rows(folder / FILE_NAME).rows).values()}
        missing = [name for name in LABELS if name not in found]
        if missing:
            raise DataError(f"{folder / FILE_NAME}: no row of {', '.join(missing)}; remove the file and run again")
        self.rows: dict[str, ResultRow] = {name: found[name] for name in LABELS}

    @property
    def is_won(self) -> bool:
        """Whether the pretrained backbone is ahead of both others."""
        return min(self.lead(UNTRAINED).value, self.lead(PIXELS).value) > 0

    def lead(self, other: str) -> Lead:
        """Returns how far the pretrained backbone is ahead of `other`, from the predictions that the probes stored."""
        hits, other_hits = (self._hits(self.rows[name]) for name in (PRETRAINED, other))
        difference = hits.astype(np.float64) - other_hits
        return Lead(float(difference.mean()), float(difference.std()) / math.sqrt(len(difference)))

    def sentence(self) -> str:
        """Returns the comparison in words."""
        leads = f"{self.lead(UNTRAINED)} points over the untrained network, {self.lead(PIXELS)} over raw pixels"
        return f"lead of the pretrained backbone: {leads}"

    def _hits(self, row: ResultRow) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        with np.load(self._folder / row.details["folder"] / "predictions.npz", allow_pickle=False) as stored:
            hits: np.ndarray[tuple[int], np.dtype[np.bool_]] = stored["predictions"] == stored["labels"]
        return hits
