"""The evaluations of a run: which are due after a step, carried out by all ranks, and told in the log, each once."""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ...datasets.ranks import Ranks
from ...datasets.shards import Shards
from ...linear_probe.boundary import heeded
from ...linear_probe.probe import Splits
from ...model_zoo.backbone import Backbone, backbone_in_training
from ...model_zoo.export import Card
from ...model_zoo.preprocessing import Normalize
from ..average import Average
from ..batches import RunBatches
from ..curves import draw_curves
from ..engines.engine import Engine
from ..log import Logger
from ..loggers.scalars import written_before
from ..settings.duration import Lengths
from ..settings.evaluators import VAL
from ..settings.pretrain import PretrainSettings
from ..stopping.preemption import Vote
from ..trainer import Cadence
from .classify import evaluate, share_buffers
from .features import Extraction, Gathered
from .opened import Downstream
from .scoring import score_downstream


def intervals(config: PretrainSettings, lengths: Lengths) -> dict[str, int]:
    """Returns the steps between evaluations by evaluator's name, data.val's first."""
    every = {VAL: config.run.eval_every} if config.data.val is not None else {}
    every |= {name: settings.every for name, settings in config.evaluators.items()}
    return {name: max(lengths.steps(text), 1) for name, text in every.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class _Group:
    """Evaluators of the same set, which is gone through once, and the rank that keeps its features and works on them."""

    splits: Splits
    members: list[Downstream]
    keeper: int


@dataclasses.dataclass(frozen=True, eq=False)
class _Features:
    """The features of a group, on its keeper."""

    group: _Group
    train: Gathered
    test: Gathered
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluations:
    """The evaluators of a run on one rank. Every rank calls every method, with the same step."""

    config: PretrainSettings
    val: Shards | None
    downstream: Sequence[Downstream]
    every: Mapping[str, int]
    """As `intervals`."""
    engine: Engine
    average: Average
    batches: RunBatches
    normalize: Normalize
    card: Callable[[int], Card]
    """What the model's export after so many steps would say of it."""
    ranks: Ranks
    vote: Vote
    logger: Logger
    cadence: Cadence
    _values: dict[int, dict[str, float]] = dataclasses.field(default_factory=dict, init=False)

    def after(self, step: int) -> None:
        """Carries out what is due after step number `step`, counted from 1, and writes a row for each.

        Raises:
            StopRequested: on all ranks at the same boundary; what has no row by then is for `catch_up`.
        """
        self._carry_out(step, self._due(step))

    def catch_up(self, step: int) -> None:
        """Carries out what was due where a resumed run stands and has no row in its log: a stop had interrupted it.

        Raises:
            StopRequested: as `after`.
        """
        due = self._due(step) if step else []
        told = self._told(step) if self.ranks.is_first else set()
        missing: list[str] = json.loads(self.ranks.from_first(json.dumps([name for name in due if name not in told])))
        self._carry_out(step, missing)

    def values(self, step: int) -> dict[str, float]:
        """Returns what the evaluators found after this very step, by name, on rank 0."""
        return dict(self._values.get(step, {}))

    def _told(self, step: int) -> set[str]:
        """Returns who has a row of this step; one by a start that went further than the run now stands is of weights that are no more."""
        return {
            row.get("name", VAL) for row in written_before(self.config.run.folder, step) if row["kind"] == "eval" and row["step"] == step
        }

    def _due(self, step: int) -> list[str]:
        return [name for name, every in self.every.items() if self.cadence.due(every, step)]

    def _carry_out(self, step: int, names: Sequence[str]) -> None:
        if not names:
            return
        self._values.clear()
        if VAL in names and self.val is not None:
            self._classify(step, self.val)
        groups = self._groups([evaluator for evaluator in self.downstream if evaluator.name in names])
        for first in range(0, len(groups), self.ranks.world_size):  # so that no rank holds the features of two sets
            self._score(step, self._extract(step, groups[first : first + self.ranks.world_size]))
        if self.ranks.is_first:
            draw_curves(self.config.run.folder)

    def _classify(self, step: int, shards: Shards) -> None:
        started = time.perf_counter()
        batches = self.batches.validation(shards, self.card(step).preprocessing.view)
        with self.engine.lend(self.average.shards) as module:
            score = evaluate(module, self.normalize, batches, self.ranks, self.config.run.precision, self.vote)
        found = {"metric": "top1", "value": score.top1, **dataclasses.asdict(score)}
        self._tell(step, VAL, {**found, "seconds": round(time.perf_counter() - started, 3)})

    def _groups(self, due: Sequence[Downstream]) -> list[_Group]:
        members: dict[int, list[Downstream]] = {}
        for evaluator in due:
            members.setdefault(id(evaluator.splits), []).append(evaluator)
        return [_Group(group[0].splits, group, number % self.ranks.world_size) for number, group in enumerate(members.values())]

    def _extract(self, step: int, groups: Sequence[_Group]) -> list[_Features]:
        """Returns the features of the groups that this rank keeps; all ranks compute those of all groups."""
        run = self.config.run
        extraction = Extraction(self.batches, run.eval_batch_size, run.precision, self.ranks, self.vote)
        with self.engine.lend(self.average.shards) as module:
            share_buffers(module, self.ranks)
            backbone = backbone_in_training(self.card(step), module.state_dict()).to(self.ranks.device)
            kept = [self._features(backbone, group, extraction) for group in groups]
        return [features for features in kept if features is not None]

    def _features(self, backbone: Backbone, group: _Group, extraction: Extraction) -> _Features | None:
        started = time.perf_counter()
        train, test, name = group.splits.train, group.splits.test, group.members[0].settings.dataset
        rows = np.unique(np.concatenate([member.rows for member in group.members]))
        train_features = extraction.gather(backbone, train, rows, group.keeper, f"{name} train")
        test_features = extraction.gather(backbone, test, np.arange(len(test)), group.keeper, f"{name} test")
        if train_features is None or test_features is None:
            return None
        return _Features(group, train_features, test_features, time.perf_counter() - started)

    def _score(self, step: int, kept: Sequence[_Features]) -> None:
        """Scores each group on its keeper, all keepers at a time; the others wait with them, and all vote."""
        if kept and self.ranks.device.type == "cuda":
            torch.cuda.empty_cache()  # what the passes before have let go of is the solver's
        found: dict[str, dict[str, Any]] = {}
        with heeded(self.vote.working):
            for features in kept:
                features_s = round(features.seconds / len(features.group.members), 3)
                for evaluator in features.group.members:
                    part = score_downstream(evaluator, features.train, features.test, self.ranks.device)
                    found[evaluator.name] = {**part, "features_s": features_s, "seconds": round(features_s + part["solver_s"], 3)}
        self.vote.until_none_works()
        everything = {name: part for text in self.ranks.from_all(json.dumps(found)) for name, part in json.loads(text).items()}
        for name in (evaluator.name for evaluator in self.downstream if evaluator.name in everything):
            self._tell(step, name, everything[name])

    def _tell(self, step: int, name: str, found: Mapping[str, Any]) -> None:
        if "value" in found:
            self._values.setdefault(step, {})[name] = found["value"]
        weights = "model" if self.average.shards is None else "ema"
        self.logger.write({"kind": "eval", "step": step, "name": name, **found, "weights": weights})
