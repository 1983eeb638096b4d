"""The order of a run's training samples: planned once, recorded in the run folder, and found again when the run goes on.

plan.json        the versions of the plan, each with the position of the order from which it holds
plan/rates-…/    the weight columns that they draw by
"""

import dataclasses
import json
import sys
from typing import Any

from ..cli.errors import BambooError, DataError, UserError
from ..datasets.plan.history import History, PlanVersion, VersionedOrder, read_history, write_history
from ..datasets.plan.order import SampleOrder
from ..datasets.plan.rates import open_rates
from ..datasets.plan.recipe import PlannedSource, PlanRecipe, rates_identity
from ..datasets.plan.weighting import Weighting, compile_rates
from ..datasets.ranks import Ranks
from ..datasets.shards import Shards
from .columns import find_compiled
from .pool import Pool
from .settings.pretrain import PretrainSettings


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """The order of a run from where it stands."""

    order: SampleOrder
    history: History

    def version_at(self, position: int) -> int:
        """Returns the number of the plan version that holds at a position of the order."""
        place = self.history.at(position)
        assert place is not None, "checked when the plan was opened"
        return self.history.versions[place].number


def open_plan(config: PretrainSettings, pool: Pool, ranks: Ranks, position: int) -> RunPlan:
    """Returns the run's plan from `position` on.

    Rank 0 compiles weight columns, compares with the record and extends it where `sampling.replan` allows; the others read what it wrote.

    Raises:
        UserError: when the run was planned otherwise, with every difference and what to do.
        DataError: when the record or a weight column is missing or damaged, or a version that is to follow needs other data.
        SystemExit: on the other ranks, when rank 0 raises.
    """
    text, failure = "", None
    if ranks.is_first:
        try:
            text = json.dumps(dataclasses.asdict(_Planner(config, pool, position).history()))
        except BambooError as error:
            text, failure = json.dumps(error.exit_code), error
    told = json.loads(ranks.from_first(text))
    if failure is not None:
        raise failure
    if isinstance(told, int):
        raise SystemExit(told)  # rank 0 says why
    versions = tuple(PlanVersion(**version) for version in told.pop("versions"))
    history = History(versions, **told)
    place = history.at(position) or 0
    counts = [part.shard_counts for part in pool.train.parts]
    recipes = [(version, PlanRecipe.from_json(version.plan)) for version in versions[place:]]
    orders = [recipe.order(counts, config.run.folder / "plan", version.number) for version, recipe in recipes]
    return RunPlan(VersionedOrder([version.start for version, _ in recipes], orders), history)


class _Planner:
    """Compares what the settings ask for with what the run folder records."""

    def __init__(self, config: PretrainSettings, pool: Pool, position: int) -> None:
        self._config, self._pool, self._position = config, pool, position
        self._folder = config.run.folder
        self._path = self._folder / "plan.json"

    def history(self) -> History:
        """Returns the history as it holds now; what it names is compiled, and it is written where it changed."""
        recorded, recipe = read_history(self._path), self._recipe()
        history = self._decide(recorded, recipe.to_json())
        self._compile(recipe)
        for version in history.versions[history.at(self._position) or 0 :]:
            self._check(version)
        if history != recorded:
            write_history(self._path, history)
        return history

    def _decide(self, recorded: History, plan: dict[str, Any]) -> History:
        here, position = recorded.at(self._position), self._position
        if position and here is None:
            return self._without_record(recorded, plan)
        if recorded.versions and recorded.versions[-1].plan == plan:
            return recorded  # what begins later is followed where it begins
        before = recorded.at(position - 1)  # also where a version begins just here, and nothing was drawn by it yet
        if before is not None and recorded.versions[before].plan == plan:
            dropped = recorded.versions[before + 1]
            sys.stderr.write(f"plan: the version that began at sample {dropped.start * self._repeats:,} is dropped, as its settings are\n")
            return recorded.until(before)
        if position and not self._config.sampling.replan:
            raise UserError(self._refusal(recorded, here, plan))
        return recorded.then(position, plan, self._pool.lengths.samples_per_epoch)

    def _without_record(self, recorded: History, plan: dict[str, Any]) -> History:
        """Begins a version where the record of what was before is gone, with a number that none before it can have had."""
        at = f"at sample {self._position * self._repeats:,}"
        if not self._config.sampling.replan:
            state = f"has no version that holds {at}" if recorded.versions else f"is missing, though the run stands {at}"
            remedy = "put it back, or begin a new version there with --sampling.replan"
            raise DataError(f"{self._path}: {state}; without it the run cannot go on exactly: {remedy}")
        number = max(recorded.next_number, self._position)
        return dataclasses.replace(recorded, next_number=number).then(self._position, plan, self._pool.lengths.samples_per_epoch)

    def _refusal(self, recorded: History, here: int | None, plan: dict[str, Any]) -> str:
        before = recorded.versions[here or 0].plan
        changes = [f"  {name}: was {was}, is {now}" for name, was, now in _differences(before, plan)]
        at = f"sample {self._position * self._repeats}"
        remedy = f"give the old values back, or begin a new plan version at {at} with --sampling.replan"
        return "\n".join([f"run.folder={self._folder}: its samples were planned otherwise; {remedy}", *changes])

    def _recipe(self) -> PlanRecipe:
        sources = []
        for part, weighting, quota in zip(self._pool.train.parts, self._pool.weightings, self._pool.quotas, strict=True):
            rates = "" if weighting.is_even else self._identity(weighting, part)
            sources.append(PlannedSource(part.data_hash, quota, rates))
        return PlanRecipe(self._config.run.seed, self._config.data.window, self._config.sampling.coupled, tuple(sources))

    def _identity(self, weighting: Weighting, part: Shards) -> str:
        compiled = find_compiled(self._folder, weighting, part.data_hash)
        return compiled.name if compiled is not None else rates_identity(weighting, part.data_hash)

    def _compile(self, recipe: PlanRecipe) -> None:
        for part, weighting, source in zip(self._pool.train.parts, self._pool.weightings, recipe.sources, strict=True):
            folder = self._folder / "plan" / source.rates
            if source.rates and not folder.exists():
                compile_rates(weighting, part.index, part.shard_counts, folder, "sampling", part.data_hash)

    def _check(self, version: PlanVersion) -> None:
        """Checks that a version that is to hold is of the data at hand, and its weight columns whole."""
        recipe, parts = PlanRecipe.from_json(version.plan), self._pool.train.parts
        if [source.data_hash for source in recipe.sources] != [part.data_hash for part in parts]:
            where = f"the version that holds from sample {version.start * self._repeats:,} on is of other data than data.train names"
            remedy = "name its folders to go on in it, or begin a new version with --sampling.replan"
            raise DataError(f"{self._path}: {where}; {remedy}")
        for source, part in zip(recipe.sources, parts, strict=True):
            if source.rates:
                open_rates(self._folder / "plan" / source.rates, part.shard_counts, verify=True)

    @property
    def _repeats(self) -> int:
        return self._config.data.repeats


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    names = sorted(before.keys() | now.keys())
    return [(name, before.get(name), now.get(name)) for name in names if before.get(name) != now.get(name)]
