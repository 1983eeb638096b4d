"""All that a sample order depends on, as a record that fits into a run folder, and the order built from it."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...cli.errors import DataError
from ..atomic import sha256_file, sha256_json
from ..counters import key
from .alternating import AlternatingOrder, Phase
from .drawing import Ids
from .mixture import MixedOrder
from .order import PLAN_FORMAT, Order, SampleOrder
from .rates import open_rates
from .weighting import Weighting, settings_of

_SOURCE, _MIXTURE = 0x534F5552, 0x4D495854  # what a key is for, so that no two uses share their draws


@dataclasses.dataclass(frozen=True)
class PlannedSource:
    """One shard folder in a plan."""

    data_hash: str
    quota: int
    """Places of an epoch; of a plan with one source and no quota of its own 0. Of two phases each folder has epochs of its own length."""
    rates: str
    """Identity of its weight column; empty where every sample is taken once an epoch."""


@dataclasses.dataclass(frozen=True)
class PlanRecipe:
    """What a plan version is made of."""

    seed: int
    window: int
    coupled: bool
    sources: tuple[PlannedSource, ...]
    plan_format: int = PLAN_FORMAT
    snapshot: str = ""
    """Number and content hash of the snapshot that its folders and rates are of, `2:9f86…`; empty: of none."""

    def to_json(self) -> dict[str, Any]:
        """Returns plain data; equal data makes equal orders."""
        plan = dataclasses.asdict(self) | {"sources": [dataclasses.asdict(source) for source in self.sources]}
        if not self.snapshot:
            del plan["snapshot"]  # so that plans are what they were before there were snapshots
        return plan

    @classmethod
    def from_json(cls, plan: dict[str, Any]) -> "PlanRecipe":
        """Returns the recipe that `to_json` wrote.

        Raises:
            DataError: when it is of another plan format, whose order this Bamboo does not make.
        """
        if plan.get("plan_format") != PLAN_FORMAT:
            raise DataError(f"plan format {plan.get('plan_format')}: this Bamboo orders samples by format {PLAN_FORMAT}")
        return cls(**plan | {"sources": tuple(PlannedSource(**source) for source in plan["sources"])})

    def seed_of(self, version: int, source: int) -> int:
        """Returns the seed of a source's own order: the plan's own for the first source of version 0, another for every other pair."""
        return int(key(self.seed, _SOURCE, version, source)) if version or source else self.seed

    def order(self, shard_counts: Sequence[Ids], rates_root: Path, version: int) -> SampleOrder:
        """Returns the order; `version` keeps the draws of two versions of one run apart.

        Args:
            shard_counts: int64[S] of each source.
            rates_root: folder with the weight columns by identity.

        Raises:
            DataError: when a weight column is missing or damaged.
        """
        total = sum(source.quota for source in self.sources)
        orders = []
        for number, (source, counts) in enumerate(zip(self.sources, shard_counts, strict=True)):
            rates = open_rates(rates_root / source.rates, counts) if source.rates else None
            window = -(-self.window * source.quota // total) if total else self.window
            seed = self.seed_of(version, number)
            orders.append(Order(counts, seed=seed, window=max(window, 1), rates=rates, coupled=self.coupled))
        if not total:
            return orders[0]
        mixed = functools.partial(
            MixedOrder, num_samples=[int(counts.sum()) for counts in shard_counts], num_shards=[len(counts) for counts in shard_counts]
        )
        seed = int(key(self.seed, _MIXTURE, version))
        if all(len(order.lengths) == 1 for order in orders):
            return mixed(orders, [source.quota for source in self.sources], seed=seed)
        phases = list[SampleOrder]()
        for number, end in enumerate((0, -1)):
            quotas = [order.lengths[end] if source.quota else 0 for order, source in zip(orders, self.sources, strict=True)]
            if any(quotas):
                seed = int(key(self.seed, _MIXTURE, version, number))
                phases.append(mixed([Phase(order, number) for order in orders], quotas, seed=seed))
        return AlternatingOrder(phases, coupled=self.coupled) if len(phases) > 1 else phases[0]


def rates_identity(weighting: Weighting, data_hash: str) -> str:
    """Returns the name of the weight column that a weighting makes of the data: a hash of all that it depends on."""
    settings = settings_of(weighting)
    settings |= {name: sha256_file(value) for name, value in settings.items() if isinstance(value, Path)}
    return f"rates-{sha256_json([settings, data_hash])[:16]}"
