"""Which shard folders a run streams, and how much of each an epoch takes: `FOLDER`, `FOLDER@2x`, `FOLDER@30%`, `FOLDER@50000`.

FOLDER          its own epoch, once
FOLDER@2.5x     its own epoch, two and a half times
FOLDER@30%      that share of the epoch; then every folder has one, and they add up to 100
FOLDER@50000    so many samples
"""

import dataclasses
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Literal

from ...cli.errors import UserError
from ..remote.locations import redacted, shown

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_AMOUNT = re.compile(r"(?P<location>.+)@(?P<value>\d+(?:\.\d+)?)(?P<unit>x|%|)")


@dataclasses.dataclass(frozen=True)
class Source:
    """A shard folder, local or remote, and its amount."""

    location: str
    value: Fraction = Fraction(1)
    unit: Literal["x", "%", "samples"] = "x"
    amount: str = ""
    """As it was spelled, with its `@`."""

    @property
    def shown(self) -> str:
        """The source as it may be logged: without credentials and signatures."""
        return shown(self.location) + self.amount

    @property
    def is_plain(self) -> bool:
        """Whether it was named without an amount."""
        return self.unit == "x" and self.value == 1


def parse_source(text: str) -> Source:
    """Returns the source that a setting spells; a local folder that is really called so is meant without an amount.

    Raises:
        UserError: for a part of a sample, and for what only looks like an address.
    """
    if "://" in text and not _ADDRESS.match(text):
        raise UserError(f"data.train={redacted(text)}: an address begins with its scheme; in a list, put it in quotes")
    match = _AMOUNT.fullmatch(text)
    if match is None or Path(text).is_dir():
        return Source(text)
    unit = match["unit"] or "samples"
    if unit == "samples" and "." in match["value"]:
        raise UserError(f"data.train={shown(text)}: samples are whole; for a share give @{match['value']}%, for repeats @{match['value']}x")
    amount = text.removeprefix(match["location"])
    return Source(match["location"], Fraction(match["value"]), unit, amount)  # type: ignore[arg-type]  # the pattern has no others


def quotas(sources: Sequence[Source], own_epochs: Sequence[int], epoch_samples: int | None) -> list[int]:
    """Returns the places that each source has in an epoch.

    Args:
        own_epochs: samples of each source's own epoch.
        epoch_samples: samples of the whole epoch, where it is given.

    Raises:
        UserError: when the amounts do not fit each other.
    """
    shares = [source for source in sources if source.unit == "%"]
    if shares:
        return _shared(sources, sum(own_epochs) if epoch_samples is None else epoch_samples)
    if epoch_samples is not None:
        if len(sources) == 1 and sources[0].is_plain:
            return [epoch_samples]
        named = [source.shown for source in sources if not source.is_plain] or [source.shown for source in sources]
        raise UserError(f"sampling.epoch={epoch_samples}: the length follows from the amounts of {', '.join(named)}; give shares (@30%)")
    counts = [
        round(source.value * own) if source.unit == "x" else int(source.value) for source, own in zip(sources, own_epochs, strict=True)
    ]
    if not any(counts):
        raise UserError("data.train: the amounts come to no sample; give at least one folder an amount above 0")
    return counts


def _shared(sources: Sequence[Source], epoch_samples: int) -> list[int]:
    """Returns quotas by largest remainder, which add up to the epoch."""
    without = [source.shown for source in sources if source.unit != "%"]
    total = sum(source.value for source in sources)
    if without or total != 100:
        found = f"{', '.join(without)} has none" if without else f"they add up to {float(total):g}"
        raise UserError(f"data.train: where a folder has a share (@30%), all have one, and they add up to 100; {found}")
    exact = [source.value * epoch_samples / 100 for source in sources]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(sources)), key=lambda i: exact[i] - counts[i], reverse=True)
    for i in by_remainder[: epoch_samples - sum(counts)]:
        counts[i] += 1
    return counts
