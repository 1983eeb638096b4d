"""The order of a run's training samples: planned once, recorded in the run folder, and found again when the run goes on.

plan.json        the versions of the plan, each with the position of the order from which it holds
plan/rates-…/    the weight columns that they draw by
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..cli.errors import BambooError, DataError, UserError
from ..datasets.plan.drawing import Ids
from ..datasets.plan.history import History, PlanVersion, VersionedOrder, read_history, write_history
from ..datasets.plan.loss_weights import LossWeights, VersionWeights, version_weights
from ..datasets.plan.order import SampleOrder
from ..datasets.plan.rates import open_rates
from ..datasets.plan.recipe import PlannedSource, PlanRecipe, rates_identity
from ..datasets.plan.weighting import OF_SNAPSHOT, Weighting, compile_rates
from ..datasets.ranks import Ranks
from ..datasets.shards import Shards
from .columns import find_compiled
from .pool import Pool, open_cache
from .settings.pretrain import PretrainSettings


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """The order of a run from where it stands."""

    order: SampleOrder
    history: History
    loss_weights: LossWeights | None = None
    """None: all losses weigh the same."""

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
    if pool.grown is not None and versions[-1].plan.get("snapshot") != pool.grown.identity:
        raise UserError(f"data.snapshot={config.data.snapshot}: a new snapshot appeared while the ranks started; start them again")
    place = history.at(position) or 0
    held = versions[place:]
    starts = [version.start for version in held]
    order = VersionedOrder(starts, [_order(version, pool.train.parts, config.run.folder) for version in held])
    beta, weights = config.sampling.loss_beta, None
    if beta:
        weights = LossWeights(starts, [_weights(version, pool.train.parts, config.run.folder, beta) for version in held])
    return RunPlan(order, history, weights)


def _order(version: PlanVersion, parts: Sequence[Shards], run: Path) -> SampleOrder:
    """Returns the order of a version, which is of the first of `parts`, or of all."""
    recipe, counts = _planned(version, parts)
    return recipe.order(counts, run / "plan", version.number)


def _weights(version: PlanVersion, parts: Sequence[Shards], run: Path, beta: float) -> VersionWeights:
    """Returns how much losses weigh in a version, which is of the first of `parts`, or of all."""
    recipe, counts = _planned(version, parts)
    return version_weights(recipe, counts, run / "plan", beta)


def _planned(version: PlanVersion, parts: Sequence[Shards]) -> tuple[PlanRecipe, list[Ids]]:
    recipe = PlanRecipe.from_json(version.plan)
    return recipe, [part.shard_counts for part in parts[: len(recipe.sources)]]


class _Planner:
    """Compares what the settings ask for with what the run folder records."""

    def __init__(self, config: PretrainSettings, pool: Pool, position: int) -> None:
        self._config, self._pool, self._position = config, pool, position
        self._folder = config.run.folder
        self._path = self._folder / "plan.json"

    def history(self) -> History:
        """Returns the history as it holds now; what it names is compiled, and it is written where it changed."""
        recorded, recipe = read_history(self._path), self._recipe()
        self._tell_of_snapshot()
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
        epoch_samples = self._pool.lengths.samples_per_epoch
        if here is None or plan.get("snapshot") in (None, recorded.versions[here].plan.get("snapshot")):
            return recorded.then(position, plan, epoch_samples)
        return recorded.until(here).then(self._joins_at(recorded.versions[here]), plan, epoch_samples)

    def _tell_of_snapshot(self) -> None:
        grown, data = self._pool.grown, self._config.data
        if grown is not None and data.train:
            sys.stderr.write(f"data.snapshot={data.snapshot} names the training data; data.train={' '.join(data.train)} is not used\n")
        if grown is not None and grown.newest != grown.snapshot.number:
            kept = f"this run goes on with {grown.snapshot.number}"
            remedy = f"--sampling.replan lets {grown.newest} join at the next epoch boundary"
            sys.stderr.write(f"plan: snapshot {grown.newest} is there; {kept}; {remedy}\n")
        if grown is not None and (small := grown.passed_over()):
            why = "its probabilities come" if len(small) == 1 else "the probabilities of each come"
            sys.stderr.write(f"plan: no sample is taken of {', '.join(small)}: {why} to less than one an epoch\n")

    def _joins_at(self, here: PlanVersion) -> int:
        """Returns where a snapshot takes over from the version that holds: at the first epoch boundary from where the run stands.

        Until then the samples of that version are read from the snapshot's folders, the first of which must be its own.

        Raises:
            UserError: when the boundary is still to come, and they are not.
        """
        grown, position = self._pool.grown, self._position
        assert grown is not None
        if here.start == position:
            return position  # nothing was drawn by it yet
        recipe = PlanRecipe.from_json(here.plan)
        begins_with_it = _is_start(recipe, self._pool.train.parts)
        parts = self._pool.train.parts if begins_with_it else grown.reopen(recipe.snapshot, open_cache(self._config.data))
        joins = VersionedOrder([here.start], [_order(here, parts, self._folder)]).boundary(position) if parts else None
        if joins != position and not begins_with_it:
            where = f", which is at sample {joins * self._repeats:,}" if joins else ""
            stands = f"it does not begin with the folders that the run, at sample {position * self._repeats:,}, goes on in"
            why = f"snapshot {grown.snapshot.number} can join only where an epoch ends{where}: {stands}"
            remedy = "name its folders in data.train and its probabilities in sampling.weights to begin a version here"
            raise UserError(f"data.snapshot={self._config.data.snapshot}: {why}; {remedy}")
        assert joins is not None, "the folders that a snapshot begins with are open"
        if joins > position:
            where = f"at sample {joins * self._repeats:,}, where an epoch ends"
            sys.stderr.write(f"plan: snapshot {grown.snapshot.number} joins {where}; until then the plan stays as it is\n")
        return joins

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
        begin = f"begin a new plan version at sample {self._position * self._repeats}"
        if self._pool.grown is not None and plan["snapshot"] != before.get("snapshot"):
            begin = f"let snapshot {self._pool.grown.snapshot.number} join at the next epoch boundary"
        remedy = f"give the old values back, or {begin} with --sampling.replan"
        return "\n".join([f"run.folder={self._folder}: its samples were planned otherwise; {remedy}", *changes])

    def _recipe(self) -> PlanRecipe:
        sources = []
        for part, weighting, quota in zip(self._pool.train.parts, self._pool.weightings, self._pool.quotas, strict=True):
            rates = "" if weighting.is_even else self._identity(weighting, part)
            sources.append(PlannedSource(part.data_hash, quota, rates))
        snapshot = "" if self._pool.grown is None else self._pool.grown.identity
        return PlanRecipe(self._config.run.seed, self._config.data.window, self._pool.coupled, tuple(sources), snapshot=snapshot)

    def _identity(self, weighting: Weighting, part: Shards) -> str:
        compiled = find_compiled(self._folder, weighting, part.data_hash)
        return compiled.name if compiled is not None else rates_identity(weighting, part.data_hash)

    def _compile(self, recipe: PlanRecipe) -> None:
        what = "sampling" if self._pool.grown is None else OF_SNAPSHOT
        for part, weighting, source in zip(self._pool.train.parts, self._pool.weightings, recipe.sources, strict=True):
            folder = self._folder / "plan" / source.rates
            if source.rates and not folder.exists():
                compile_rates(weighting, part.index, part.shard_counts, folder, what, part.data_hash)

    def _check(self, version: PlanVersion) -> None:
        """Checks that a version that is to hold is of the data at hand, and its weight columns whole."""
        recipe, parts = PlanRecipe.from_json(version.plan), self._pool.train.parts
        if not _is_start(recipe, parts):
            names = "data.train names" if self._pool.grown is None else f"snapshot {self._pool.grown.snapshot.number} is trained from"
            where = f"the version that holds from sample {version.start * self._repeats:,} on is of other data than {names}"
            remedy = "name its folders to go on in it, or begin a new version with --sampling.replan"
            raise DataError(f"{self._path}: {where}; {remedy}")
        for source, part in zip(recipe.sources, parts, strict=False):  # of the first ones
            if source.rates:
                open_rates(self._folder / "plan" / source.rates, part.shard_counts, verify=True)

    @property
    def _repeats(self) -> int:
        return self._config.data.repeats


def _is_start(recipe: PlanRecipe, parts: Sequence[Shards]) -> bool:
    """Whether a plan is of the first of some folders, or of all: then it numbers samples and shards as they do."""
    ours = [source.data_hash for source in recipe.sources]
    return ours == [part.data_hash for part in parts[: len(ours)]]


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    names = sorted(before.keys() | now.keys())
    return [(name, before.get(name), now.get(name)) for name in names if before.get(name) != now.get(name)]
