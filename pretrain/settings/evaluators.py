"""The settings of the evaluators: sections of the user's naming, each of which scores the weights on a downstream set every so often."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ...cli.config import settings
from .duration import Duration, is_nothing

VAL = "val"
"""Name of the evaluator that data.val and run.eval_every stand for."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@settings
class DownstreamSettings:
    """What every evaluator on a downstream set can be told; names and meanings are those of `bamboo probe`."""

    dataset: str
    """Name of the set, as `bamboo sets list` has it; folder and shards are sets of one's own."""
    data_root: Path
    """Folder in which the set lies."""
    any_counts: bool = False
    """Accept other numbers of images than the set's official ones."""
    every: Duration = "1 epochs"
    """How often it scores the weights; it always does at the end."""
    subset: str = "100p"
    """Training images in use: 100p, 10p, 1p … of every class, or 1shot, 5shot, … images of every class."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the validation split and the subset."""

    def problems(self) -> list[str]:
        """Returns what does not fit together."""
        return [f"every={self.every}: must be above 0; with 100 % it scores at the end only"] if is_nothing(self.every) else []


@settings
class KnnSettings(DownstreamSettings):
    """The vote of the nearest training images."""

    kind: Literal["knn"]
    """The nearest neighbours' vote."""
    k: Annotated[int, Field(ge=1, le=10_000)] = 20
    """How many neighbours vote."""
    temperature: Annotated[float, Field(gt=0, le=100)] = 0.07
    """A neighbour's vote weighs exp(cosine / temperature)."""


@settings
class ProbeSettings(DownstreamSettings):
    """A linear classifier on frozen features."""

    kind: Literal["probe"]
    """The linear probe."""
    protocol: Literal["standard", "clip", "bamboo-2022", "dino-linear"] = "standard"
    """How hyper-parameters are chosen and what is reported; numbers of two protocols do not compare."""


Evaluators = dict[str, Annotated[KnnSettings | ProbeSettings, Field(discriminator="kind")]]


def name_problems(evaluators: Evaluators) -> list[str]:
    """Returns what is wrong with the names."""
    found = [
        f"evaluators.{name}: a name is made of letters, digits, _ and -, the first a letter or digit"
        for name in evaluators
        if not _NAME.fullmatch(name)
    ]
    if VAL in evaluators:
        found.append(f"evaluators.{VAL}: is the name of what data.val and run.eval_every stand for; give it another")
    return found
