"""The order of a run's training samples: planned once, recorded in the run folder, and found again when the run goes on.

plan.json        the versions of the plan, each with the position of the order from which it holds
plan/rates-…/    the weight columns that they draw by
"""

import json
from pathlib import Path
from typing import Any

from ..cli.errors import DataError, UserError
from ..datasets.plan.history import PlanVersion, VersionedOrder, read_history, write_history
from ..datasets.plan.order import SampleOrder
from ..datasets.plan.recipe import PlannedSource, PlanRecipe, rates_identity
from ..datasets.plan.weighting import compile_rates
from ..model_zoo.ranks import Ranks
from .config import PretrainSettings
from .pool import Pool


def open_order(config: PretrainSettings, pool: Pool, ranks: Ranks, position: int) -> tuple[SampleOrder, int]:
    """Returns the run's order from `position` on, and the number of the plan version that holds there.

    Rank 0 compiles weight columns, compares with the record and extends it where `sampling.replan` allows; the others read what it wrote.

    Raises:
        UserError: when the run was planned otherwise, with every difference and what to do.
        DataError: when the record or a weight column is damaged, or an older version needs other data.
    """
    folder = config.run.folder
    text = json.dumps([[version.start, version.plan] for version in _record(config, pool, position)]) if ranks.is_first else ""
    versions = [PlanVersion(start, plan) for start, plan in json.loads(ranks.from_first(text))]
    number = max(i for i, version in enumerate(versions) if version.start <= position)
    counts = [part.shard_counts for part in pool.train.parts]
    orders = []
    for i, version in list(enumerate(versions))[number:]:
        recipe = PlanRecipe.from_json(version.plan)
        if [source.data_hash for source in recipe.sources] != [part.data_hash for part in pool.train.parts]:
            raise DataError(f"{folder / 'plan.json'}: version {i} is of other data than data.train names now; name those folders again")
        orders.append(recipe.order(counts, folder / "plan", i))
    return VersionedOrder([version.start for version in versions[number:]], orders), number


def _record(config: PretrainSettings, pool: Pool, position: int) -> list[PlanVersion]:
    path = config.run.folder / "plan.json"
    recipe, versions = _recipe(config, pool), read_history(path)
    plan = recipe.to_json()
    if versions and versions[-1].plan == plan:
        _compile(config, pool, recipe)
        return versions
    if versions and position and not config.sampling.replan:
        changes = [f"  {name}: was {before}, is {now}" for name, before, now in _differences(versions[-1].plan, plan)]
        remedy = f"give the old values back, or begin a new plan version at sample {position} with --sampling.replan"
        raise UserError("\n".join([f"run.folder={config.run.folder}: its samples were planned otherwise; {remedy}", *changes]))
    _compile(config, pool, recipe)
    versions = [*(version for version in versions if version.start < position), PlanVersion(position, plan)]
    write_history(path, versions)
    return versions


def _recipe(config: PretrainSettings, pool: Pool) -> PlanRecipe:
    sources = []
    for part, weighting, quota in zip(pool.train.parts, pool.weightings, pool.quotas, strict=True):
        rates = "" if weighting.is_even else rates_identity(weighting, part.data_hash)
        sources.append(PlannedSource(part.data_hash, quota, rates))
    return PlanRecipe(config.run.seed, config.data.window, config.sampling.coupled, tuple(sources))


def _compile(config: PretrainSettings, pool: Pool, recipe: PlanRecipe) -> None:
    for part, weighting, source in zip(pool.train.parts, pool.weightings, recipe.sources, strict=True):
        folder: Path = config.run.folder / "plan" / source.rates
        if source.rates and not folder.exists():
            compile_rates(weighting, part.index, part.shard_counts, folder, "sampling")


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    names = sorted(before.keys() | now.keys())
    return [(name, before.get(name), now.get(name)) for name in names if before.get(name) != now.get(name)]
