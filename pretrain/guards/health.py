"""A run's health: what is done about numbers that are not finite, figures that jump, and Python's garbage."""

import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from ...cli.errors import DataError
from ...datasets.atomic import write_json
from ...datasets.ranks import Ranks
from ..average import Average
from ..engines.engine import Engine
from ..settings.health import HealthSettings
from ..tally import Fault, Figures, Tally
from .collector import Collector
from .nonfinite import Nonfinite, Skip, Stop, all_finite
from .spikes import Spikes

REPORT_NAME = "nonfinite.json"
_NAMED = 8  # sample ids in a message; the report has them all
_REMEDY = "try a lower optimizer.lr, optimizer.clip_norm=1 or run.precision=fp32, look at those samples"


class Health:
    """Watches one rank's run.

    Args:
        folder: run folder, where the report of a fault goes; None: none is written.
    """

    def __init__(self, settings: HealthSettings, ranks: Ranks, folder: Path | None = None) -> None:
        self._settings, self._ranks, self._folder = settings, ranks, folder
        self.nonfinite: Nonfinite = Skip(ranks.device) if settings.nonfinite == "skip" else Stop()
        self.collector = Collector(settings.gc_every)
        self._spikes = {name: Spikes(settings.spike_factor) for name in ("loss", "grad_norm")}

    def figures(self, tally: Tally, step: int) -> tuple[Figures, Mapping[str, int]]:
        """Returns the figures since the last line, and what else its row says; clears the tally.

        Raises:
            DataError: naming step, ranks and samples, when a step's figures are not finite, or too many in a row were not; on all ranks.
        """
        left_out, row = self.nonfinite.read()
        figures = tally.read(left_out)
        if self.nonfinite.skips and row >= self._settings.max_nonfinite:
            raise self._error(tally.fault(step), step, f"{row} steps in a row were left out (health.max_nonfinite), beginning before: ")
        if not figures.is_finite:
            raise self._error(tally.fault(step), step, "")
        tally.clear()
        return figures, {"skipped": left_out} if self.nonfinite.skips else {}

    def warnings(self, figures: Figures) -> dict[str, float]:
        """Returns what a row of kind "warning" says of figures that jumped, each with what was expected and its factor; nothing: no row."""
        found: dict[str, float] = {}
        for name, value in (("loss", figures.loss), ("grad_norm", figures.gradient_norm)):
            spike = self._spikes[name].take(value)
            if spike is not None:
                found |= {name: spike.value, f"{name}_expected": spike.expected, f"{name}_factor": round(spike.factor, 2)}
        return found

    def require_finite(self, engine: Engine, average: Average, tally: Tally, step: int) -> None:
        """Passes only a state that may be saved; waits for the device.

        Raises:
            DataError: when weights, averages, optimiser state or a figure since the last line are not finite; on all ranks.
        """
        finite = all_finite(_state(engine, average), self._ranks.device) & tally.is_finite()
        if int(self._ranks.sum(finite.int())) < self._ranks.world_size:
            raise self._error(tally.fault(step) if tally.num_steps else None, step, "not saved: ")

    def _error(self, fault: Fault | None, step: int, prefix: str) -> DataError:
        advice = f"the checkpoints before are whole; {_REMEDY}"
        if not self.nonfinite.skips:
            advice += ", or have such steps left out: health.nonfinite=skip"
        if fault is None:
            return DataError(
                f"step {step}: {prefix}weights or optimiser state are not finite, though every loss was: a gradient was not; {advice}"
            )
        if self._folder is not None and self._ranks.is_first:
            write_json(self._folder / REPORT_NAME, _tree(fault))
        return DataError(f"step {fault.step}: {prefix}{self._describe(fault)}; {advice}")

    def _describe(self, fault: Fault) -> str:
        norm = "not measured" if fault.gradient_norm is None else f"{fault.gradient_norm:g}"
        loss = math.fsum(fault.losses) if all(map(math.isfinite, fault.losses)) else math.nan
        whose = fault.ranks
        by = f"not finite first on rank{'s' * (len(whose) > 1)} {', '.join(map(str, whose))} of {len(fault.losses)}"
        if not whose:
            by, whose = "every rank's loss was finite, the averaged gradient was not", list(range(len(fault.losses)))
        ids = [number for rank in whose for number in fault.samples[rank]]
        more = f", … ({len(ids)}; all in {self._folder / REPORT_NAME})" if self._folder is not None else ", …" * (len(ids) > _NAMED)
        return f"loss {loss:g}, gradient norm {norm}: {by}, samples {', '.join(map(str, ids[:_NAMED]))}{more}"


def warn_of_waiting(settings: HealthSettings, engine: Engine, ranks: Ranks) -> None:
    """Says once, on rank 0, that leaving steps out costs time here; on a CPU there is nothing to wait for."""
    if settings.nonfinite == "skip" and engine.skip_waits and ranks.is_first and ranks.device.type != "cpu":
        sys.stderr.write(
            "health.nonfinite=skip: the host waits for the device once a step, because this optimiser cannot leave out a step by itself; "
            "with engine.kind=plain, optimizer.name=adamw or adam and optimizer.args={fused: true} it does not wait\n"
        )


def _state(engine: Engine, average: Average) -> Iterator[torch.Tensor]:
    yield from engine.shards().values()
    yield from (average.shards or {}).values()
    for state in engine.optimizer.state.values():
        yield from (value.to_local() if isinstance(value, DTensor) else value for value in state.values() if torch.is_tensor(value))


def _tree(fault: Fault) -> dict[str, Any]:
    """Returns a fault as JSON knows it, which has no NaN."""
    ranks = [{"rank": rank, "loss": str(loss), "samples": list(fault.samples[rank])} for rank, loss in enumerate(fault.losses)]
    return {"step": fault.step, "gradient_norm": None if fault.gradient_norm is None else str(fault.gradient_norm), "ranks": ranks}
