"""What a protocol is given and what it gives back; and the steps that protocols share.

Shape letters: N rows, D features.
"""

import abc
import dataclasses
import time
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch

from ...cli.errors import UserError
from ...datasets.atomic import sha256_json
from ..metrics import Metric, Scores
from ..solver.problem import Matrix
from ..splits import Split, official_split, stratified_split

SelectedOn = Literal["validation", "test", "nothing"]

Labels = npt.NDArray[np.int64]

BLOCK_ROWS = 16384


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Features [N, D], a memory map as a rule, with labels int64[N], -1 where a row does not count."""

    features: Matrix
    labels: Labels


@dataclasses.dataclass(frozen=True)
class CurvePoint:
    """One value that was tried: `val_score` is what selected, `train_score` the top-1 accuracy on the rows trained on, both in [0, 1]."""

    x: float
    val_score: float
    train_score: float | None = None


@dataclasses.dataclass(frozen=True)
class Curve:
    """The scores that a choice was made from."""

    x: str
    """What varies: the label of the axis."""

    log: bool
    """Whether the axis is logarithmic."""

    chosen: int
    """Index into `points`."""

    points: tuple[CurvePoint, ...]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Outcome:
    """A finished probe."""

    scores: Scores
    predictions: Labels
    """int64 class ids for every test row, also those without a label."""

    chosen: dict[str, float]
    """What was chosen, by name: penalty, k, learning_rate, …"""

    curve: Curve | None
    split: Split | None
    """Rows that trained and rows that chose; None where nothing was held out."""

    num_train: int
    """Labelled training rows, those held out among them: all of them count in the end."""

    num_val: int
    num_test: int
    seconds: dict[str, float]
    """Wall seconds by stage."""

    certificate: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What is proved of the solution; empty where nothing is."""

    variants: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    """Other numbers under the same protocol, by name."""

    warnings: list[str] = dataclasses.field(default_factory=list)
    """What a reader of the number should know."""

    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Facts of the protocol's own: iterations, passes, …"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol(abc.ABC):
    """Everything that decides a probe's number besides the features; two rows are comparable only at equal digest."""

    name: str

    revision: int = 1
    """Raised when a change of the code moves the protocol's numbers: rows of an older revision are then evaluated anew."""

    selected_on: ClassVar[SelectedOn] = "validation"
    """The rows on which hyper-parameters, or the moment to stop, are chosen."""

    @property
    def digest(self) -> str:
        """Hex SHA-256 of all fields, `revision` among them."""
        return sha256_json(dataclasses.asdict(self))

    @abc.abstractmethod
    def evaluate(
        self,
        train: Rows,
        test: Rows,
        num_classes: int,
        metric: Metric,
        *,
        validation_rows: Labels | None = None,
        seed: int = 0,
        device: torch.device | None = None,
    ) -> Outcome:
        """Carries the protocol out on features.

        Args:
            metric: what selects, and what the table shows.
            validation_rows: int64[V] numbers of the training rows that are the set's official validation part; None: it has none.
            seed: of the validation split, and of whatever else is drawn.
            device: where the arithmetic runs; None: the CPU.

        Raises:
            UserError: when the training set cannot be probed, or no test row has a label.
        """


def check_sides(train: Rows, test: Rows) -> None:
    """Raises UserError unless both sides have a labelled row."""
    if not bool((train.labels >= 0).any()):
        raise UserError("the training set cannot be probed: none of its rows has a label")
    if not bool((test.labels >= 0).any()):
        raise UserError("the test set cannot be scored: none of its rows has a label")


def hold_out(labels: Labels, fraction: float, seed: int, validation_rows: Labels | None) -> Split:
    """Returns the official validation split where there is one, else a stratified one of `fraction`.

    Raises:
        UserError: when nothing can be held out.
    """
    try:
        if validation_rows is not None:
            return official_split(labels, validation_rows)
    except ValueError as error:
        raise UserError(f"the official validation split cannot be used: {error}") from None
    try:
        return stratified_split(labels, fraction, seed)
    except ValueError as error:
        needs = "standard, clip, knn and dino-linear choose on held-out rows and need at least two rows of a class (subset=2shot or more)"
        raise UserError(f"the training set cannot be probed: {error}; {needs}; bamboo-2022 holds nothing out") from None


def row_blocks(features: Matrix, rows: Labels, device: torch.device, block_rows: int = BLOCK_ROWS) -> Iterator[torch.Tensor]:
    """Yields the rows of a feature matrix as float32[≤ block_rows, D] on `device`: the whole need not fit in memory."""
    for start in range(0, len(rows), block_rows):
        yield torch.from_numpy(np.asarray(features[rows[start : start + block_rows]], np.float32)).to(device)


def load_rows(features: Matrix, rows: Labels, device: torch.device) -> torch.Tensor:
    """Returns the rows of a feature matrix as float32[len(rows), D] on `device`, which must have room for them."""
    loaded_ND = torch.empty(len(rows), features.shape[1], device=device)
    for number, block_BD in enumerate(row_blocks(features, rows, device)):
        loaded_ND[number * BLOCK_ROWS : number * BLOCK_ROWS + len(block_BD)] = block_BD
    return loaded_ND


class Clock:
    """Wall seconds by stage."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, stage: str) -> None:
        """Ends the stage that began with the last lap."""
        now = time.monotonic()
        self.laps[stage], self._last = now - self._last, now
