"""Settings of where a run's figures go besides its own log."""

import dataclasses
from typing import Annotated, Any

from pydantic import Field

from ...cli.config import settings

Count = Annotated[int, Field(gt=0)]


@settings
class WandbSettings:
    """How the run is called at wandb (run.wandb says whether there is one)."""

    project: str = "bamboo"
    """Project."""
    entity: str | None = None
    """User or team; none: the account's own."""
    name: str | None = None
    """Name; none: the run folder's."""
    group: str | None = None
    """Group that the run belongs to, e.g. all seeds of one experiment."""
    tags: tuple[str, ...] = ()
    """Tags."""


@settings
class ProfileSettings:
    """What `--profile` profiles."""

    warmup: Count = 5
    """Steps before the profile begins: compilation, caches and the loader's start are not in it."""
    steps: Count = 10
    """Steps in the profile."""
    all_ranks: bool = False
    """Profile every rank; false: rank 0."""


def unused(section: str, given: Any, reason: str) -> list[str]:
    """Returns a problem for each setting of a section that is not its default, where `reason` is why nobody reads it."""
    default = type(given)()
    names = [field.name for field in dataclasses.fields(given)]
    return [f"{section}.{name}={getattr(given, name)}: {reason}" for name in names if getattr(given, name) != getattr(default, name)]
