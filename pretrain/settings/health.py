"""The settings of a run's health: health.*."""

from typing import Annotated, Literal

from pydantic import Field

from ...cli.config import settings

_MOST_IN_A_ROW = 10
_MARGIN_S = 60.0


@settings
class HealthSettings:
    """What is done about numbers that are not finite, losses that jump, and ranks that hang."""

    nonfinite: Literal["stop", "skip"] = "stop"
    """A loss or gradient norm that is NaN or infinite on any rank ends the run at the next log line or save, or its step is left out."""
    max_nonfinite: Annotated[int, Field(ge=1, le=100_000)] = _MOST_IN_A_ROW
    """nonfinite=skip: so many steps in a row that were left out end the run."""
    spike_factor: Annotated[float, Field(ge=0)] = 8.0
    """A loss or gradient norm so many robust standard deviations above the last lines' median is logged as a warning; 0: never."""
    gc_every: Annotated[int, Field(ge=0)] = 100
    """Python's garbage collection runs after every so many steps, on all ranks at once; 0: whenever Python finds it is time."""
    first_step_s: Annotated[float, Field(ge=0)] = 1800.0
    """A rank that is so long at one thing until its first step is done, in an evaluation or in a save ends the job, by name; 0: never."""
    step_s: Annotated[float, Field(ge=0)] = 900.0
    """The same of the operations of every other step; 0: never."""

    @property
    def collective_s(self) -> float | None:
        """Longest that a collective may take: longer than both limits, so that whoever is late is named first; None: as PyTorch has it."""
        return max(self.first_step_s, self.step_s) + _MARGIN_S if self.first_step_s and self.step_s else None

    def problems(self) -> list[str]:
        """Returns what does not fit together."""
        found = []
        if self.max_nonfinite != _MOST_IN_A_ROW and self.nonfinite != "skip":
            found.append(
                f"max_nonfinite={self.max_nonfinite}: nonfinite=stop ends the run at the first; give nonfinite=skip, or leave it out"
            )
        for name, value in (("first_step_s", self.first_step_s), ("step_s", self.step_s)):
            found += [f"{name}={value:g}: allowed are 0 (never) and 1 or more seconds"] if 0 < value < 1 else []
        if 0 < self.first_step_s < self.step_s:
            found.append(
                f"first_step_s={self.first_step_s:g}: at least step_s={self.step_s:g}, since the first step compiles and fills caches"
            )
        return found
