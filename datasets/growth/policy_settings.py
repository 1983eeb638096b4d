"""The settings of a policy, which turns gains into how often each sample is taken: policy.*"""

import dataclasses
import math
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from ...cli.config import settings
from ..plan.rates import MAX_RATE

Combination = Literal["mean", "geometric", "max", "image", "text"]

_FORM = re.compile(r"(\d+(?:\.\d*)?(?:[eE]\+?\d+)?)\s*(samples?|%)?")

_USES = {
    "uniform": {"budget", "cap", "balance"},
    "static": {"gain", "combine", "budget", "quantile", "temperature", "floor", "entropy", "balance", "seed"},
    "proportional": {"gain", "combine", "budget", "quantile", "temperature", "floor", "cap", "entropy", "balance"},
    "two-phase": {"gain", "combine", "budget", "quantile", "temperature", "floor", "cap", "entropy", "balance", "phases", "second_floor"},
    "seed": set[str](),
}
"""What each kind takes besides `kind` and `deduplicate`."""


def _parse(text: str) -> tuple[Fraction, bool]:
    match = _FORM.fullmatch(text.strip())
    if match is None or not Fraction(match[1]):
        raise ValueError("takes a number of samples above 0, or a share of those that may be taken, for example 20000 samples, 30 %")
    return Fraction(match[1]), match[2] == "%"


def _check(text: str) -> str:
    _parse(text)
    return text


def _spelled(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Budget = Annotated[str, BeforeValidator(_spelled), AfterValidator(_check)]
"""Samples as people say them: `20000`, `1e6 samples` or `30 %`."""


def budget_samples(budget: str, num_trainable: int) -> int:
    """Returns a budget in samples, rounded up; `%` is a share of the samples that may be taken."""
    value, is_share = _parse(budget)
    return math.ceil(value / 100 * num_trainable if is_share else value)


@settings
class PolicySettings:
    """How often an epoch takes each sample: p = clip(τ · ĝ^(1 / temperature), floor, cap), ĝ = min(1, gain / its quantile)."""

    kind: Literal["uniform", "static", "proportional", "two-phase", "seed"] = "proportional"
    """All alike; one draw of a subset; p anew every epoch; p and what it leaves over in turn; InfoGrowth's own two phases, to the digit."""
    gain: Literal["corrected", "causal", "settled"] = "corrected"
    """To earlier samples with the drift of arrival taken out; to earlier samples; to all others, where growth was asked for it."""
    combine: Combination = "mean"
    """How the gains of image and text make one: mean, geometric mean, the greater, or one of them."""
    budget: Budget | None = None
    """Samples an epoch (of two phases the first), `20000` or `30 %` of those that may be taken; none: what τ = 1 gives. static needs it."""
    quantile: Annotated[float, Field(gt=0, le=1)] = 0.99
    """Gains from this quantile on count as the greatest."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Below 1 sharpens the preference for gain, above 1 softens it; .inf: all alike."""
    floor: Annotated[float, Field(ge=0)] = 0.0
    """Least visits an epoch of a sample that may be taken."""
    cap: Annotated[float, Field(gt=0, le=MAX_RATE)] = 1.0
    """Greatest visits an epoch; above 1 samples are repeated."""
    deduplicate: bool = True
    """Near-duplicates are not taken, and do not count in the quantile; seed takes them all the same."""
    entropy: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Weight e of the label entropy: ĝ · (1 - e) + entropy · e. The paper does not say how the two combine."""
    balance: Annotated[float, Field(ge=0)] = 0.0
    """Exponent γ: weights are divided by (images of the class that may be taken) ** γ; the epoch stays as long."""
    phases: Literal["complement", "independent"] = "complement"
    """two-phase: the second epoch takes just what the first left over; or is drawn by itself, with max(second_floor, 1 - p)."""
    second_floor: Annotated[float, Field(ge=0, le=1)] = 0.1
    """phases=independent: least probability in the second epoch."""
    seed: int = 0
    """static: seed of the draw."""

    def resolved(self) -> "PolicySettings":
        """Returns the settings, with what kind=seed stands for spelled out as those of a two-phase policy."""
        if self.kind != "seed":
            return self
        return dataclasses.replace(self, kind="two-phase", gain="causal", deduplicate=False, phases="independent")

    def problems(self) -> list[str]:
        """Returns what does not fit together."""
        found = [
            f"{name}={value}: kind={self.kind} does not use it; leave it out, or give another kind"
            for name, value in self._given()
            if name not in _USES[self.kind]
        ]
        if self.kind == "static" and self.budget is None:
            found.append("kind=static: needs to know how many samples to draw; give budget, for example 20000 or 30 %")
        if self.kind == "two-phase" and self.cap > 1:
            found.append(f"cap={self.cap:g}: two phases take a sample once each at most; use cap<=1, or kind=proportional")
        if self.kind == "two-phase" and self.phases != "independent" and self.second_floor != 0.1:
            found.append(f"second_floor={self.second_floor:g}: phases=complement does not use it; give phases=independent, or leave it out")
        if self.floor > self.cap:
            found.append(f"floor={self.floor:g}: is above cap={self.cap:g}; use floor<=cap")
        if self.kind in ("uniform", "proportional") and self.cap > 1 and self.budget is None and not self.balance:
            found.append(f"cap={self.cap:g}: without budget or balance nothing is taken more than once; give a budget, or leave cap out")
        if self.kind == "uniform" and self.balance and self.cap <= 1 and self.budget is None:
            found.append(f"balance={self.balance:g}: changes nothing where each sample is taken once; give a budget, or cap above 1")
        return found

    def _given(self) -> Iterator[tuple[str, Any]]:
        """Yields the settings that are not at their defaults, but for those that every kind takes."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in ("kind", "deduplicate") and value != field.default:
                yield field.name, value
