"""Durations as people say them: `500 steps`, `1e6 samples`, `30 epochs` or `10 %` of the run; inside, only steps exist."""

import dataclasses
import math
import re
from fractions import Fraction
from typing import Annotated

from pydantic import AfterValidator

_FORM = re.compile(r"(\d+(?:\.\d*)?(?:[eE]\+?\d+)?)\s*(steps?|samples?|epochs?|%)")


def _parse(text: str) -> tuple[Fraction, str]:
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise ValueError("takes a number and one unit of steps, samples, epochs or % (of the run), for example 30 epochs, 500 steps, 10 %")
    return Fraction(match[1]), match[2].rstrip("s")  # exact: 7 % of 200 steps is 14, in binary floats it is more


def _check(text: str) -> str:
    _parse(text)
    return text


def is_nothing(duration: str) -> bool:
    """Whether a duration is 0, whatever its unit."""
    return not _parse(duration)[0]


Duration = Annotated[str, AfterValidator(_check)]
"""A duration as a setting; the unit makes it exactly one of the four."""


@dataclasses.dataclass(frozen=True)
class Lengths:
    """What turns a duration into steps."""

    samples_per_epoch: int
    global_batch_size: int
    total_steps: int = 0
    """Steps of the whole run; 0 while that is being worked out, when `%` has no meaning."""

    def steps(self, duration: str) -> int:
        """Returns the duration in steps, rounded up."""
        value, unit = _parse(duration)
        if unit == "step":
            return math.ceil(value)
        if unit == "%":
            return math.ceil(value / 100 * self.total_steps)
        samples = value * (self.samples_per_epoch if unit == "epoch" else 1)
        return math.ceil(samples / self.global_batch_size)

    def with_epoch(self, samples: int, duration: str) -> "Lengths":
        """Returns the lengths of a run of that duration in which an epoch has so many samples."""
        bare = Lengths(samples, self.global_batch_size)
        return dataclasses.replace(bare, total_steps=bare.steps(duration))

    def last_step(self, duration: str, offset: int) -> int:
        """Returns the step after which a run of that duration ends, when step s ends at sample offset + s · global_batch_size."""
        return self.step_at(duration, duration, offset)

    def step_at(self, point: str, duration: str, offset: int) -> int:
        """Returns the first step that begins at or after a point of a run of that duration, when step s begins at sample offset + s · B.

        A point in steps is that step; one in samples or epochs lies in the samples consumed; `%` is a share of the duration.
        """
        value, unit = _parse(point)
        if unit == "%":
            whole, unit = _parse(duration)
            value = value / 100 * whole
        if unit == "step":
            return math.ceil(value)
        samples = value * (self.samples_per_epoch if unit == "epoch" else 1)
        return math.ceil((samples - offset) / self.global_batch_size)

    def schedule_step(self, duration: str, offset: int, step: int) -> float:
        """Returns where on the schedule step number `step` is: in a run whose length is in samples or epochs, by samples."""
        return step if _parse(duration)[1] == "step" else step + offset / self.global_batch_size
