"""What may change in mid-run, and when: the setting `changes`."""

import dataclasses
from typing import Any, TypeVar

from pydantic import Field

from ...cli.config import build, dump, settings
from ...cli.errors import UserError
from .data import DataSettings
from .duration import Duration
from .objective import ObjectiveSettings

Section = TypeVar("Section")

CHANGEABLE = {
    "data": (
        *("image_size", "scale", "ratio", "flip", "interpolation", "eval_crop", "augment", "rand_augment", "color_jitter", "hue_jitter"),
        *("erase", "erase_mode", "erase_area", "erase_aspect", "erase_count"),
    ),
    "objective": ("loss", "bce_threshold", "label_smoothing", "mixup", "cutmix", "mix_prob", "switch_prob"),
}
"""The settings that may change, by section: those that neither the order of samples nor the shape of the network depends on."""


@settings
class Change:
    """Settings that take other values from a point of the run on."""

    at: Duration
    """The first batch that begins at or after this point is made with the new values; %: of the run."""
    data: dict[str, Any] = Field(default_factory=dict)
    """Settings of data.*, such as {image_size: 288, scale: [0.25, 1.0]}."""
    objective: dict[str, Any] = Field(default_factory=dict)
    """Settings of objective.*, such as {mixup: 0, cutmix: 0}."""

    def problems(self) -> list[str]:
        """Returns the names that may not change, and those that may."""
        found = []
        for section, allowed in CHANGEABLE.items():
            unknown = [name for name in getattr(self, section) if name not in allowed]
            found += [f"{section}.{name}: cannot change in mid-run; of {section} these can: {', '.join(allowed)}" for name in unknown]
        return found if found or self.data or self.objective else ["data={} and objective={}: change nothing; give one of them"]


@dataclasses.dataclass(frozen=True)
class Stretch:
    """The settings that hold over a stretch of the run."""

    at: Duration
    """Where it begins."""
    data: DataSettings
    objective: ObjectiveSettings

    @property
    def mixes(self) -> bool:
        """Whether pairs of samples are blended."""
        return self.objective.mixup > 0 or self.objective.cutmix > 0


def stretches(data: DataSettings, objective: ObjectiveSettings, changes: tuple[Change, ...]) -> tuple[Stretch, ...]:
    """Returns the stretches of a run, the first from its start on; what a change leaves out stays as it was.

    Raises:
        UserError: naming every value that is wrong, or does not fit the others of its stretch.
    """
    found = [Stretch("0 steps", data, objective)]
    for number, change in enumerate(changes):
        where = f"changes.{number}"
        before = found[-1]
        changed_data = _changed(before.data, change.data, f"{where}.data")
        found.append(Stretch(change.at, changed_data, _changed(before.objective, change.objective, f"{where}.objective")))
    return tuple(found)


def _changed(section: Section, values: dict[str, Any], where: str) -> Section:
    try:
        return build(type(section), {**dump(section), **values}, where) if values else section
    except UserError as error:
        faults = [f"{where}.{line.strip()}" for line in str(error).splitlines()[1:]]  # the first line says that there are some
        raise UserError("\n  ".join(faults)) from None


def change_problems(data: DataSettings, objective: ObjectiveSettings, changes: tuple[Change, ...]) -> list[str]:
    """Returns what is wrong with the changes of a run."""
    found = [f"changes.{number}.{line}" for number, change in enumerate(changes) for line in change.problems()]
    try:
        if not found:
            stretches(data, objective, changes)
    except UserError as error:
        found.append(str(error))
    return found
