"""The loggers of a run, opened as its settings ask for; and the files that say what the run is, written at each start."""

from collections.abc import Mapping
from typing import Any

from ...cli.config import dump, to_yaml
from ...datasets.atomic import write_text
from ...datasets.ranks import Ranks
from ..log import JsonLines, Logger, Loggers
from ..pool import Pool
from ..record.machine import this_machine
from ..record.provenance import describe, record_start, without_secrets
from ..settings.pretrain import PretrainSettings
from .console import Console
from .tensorboard import TensorBoard
from .wandb import Wandb


def open_loggers(
    config: PretrainSettings, pool: Pool, ranks: Ranks, *, total: int, place: Mapping[str, int], measured: Mapping[str, Any]
) -> Loggers:
    """Writes `config.yaml` and `run.json`, opens the loggers and logs the start; every rank calls it, and rank 0 writes.

    Args:
        total: steps of the run.
        place: where the run stands: step, samples, plan_version.
        measured: further facts for `run.json`.

    Raises:
        UserError: when an extra that the settings ask for is not installed.
    """
    machines = ranks.from_all(this_machine(ranks.device))
    if not ranks.is_first:
        return Loggers([])
    run = config.run
    run.folder.mkdir(parents=True, exist_ok=True)
    shown = without_secrets(config)
    write_text(run.folder / "config.yaml", to_yaml(shown))
    size = {"world_size": ranks.world_size, "global_batch_size": run.global_batch_size}
    who = {"nodes": len({machine.host for machine in machines}), "host": machines[0].host, "engine": config.engine.kind}
    facts = {**describe(config, pool, ranks, machines, total), **measured}
    identity = record_start(run.folder, facts, {**place, **size, **who})
    loggers: list[Logger] = [JsonLines(run.folder), Console(total)]
    if run.tensorboard:
        loggers.append(TensorBoard(run.folder, place["step"]))
    if run.wandb != "disabled":
        loggers.append(Wandb(run.folder, run.wandb, config.wandb, identity, dump(shown), place["step"]))
    opened = Loggers(loggers)
    opened.write({"kind": "start", **place, **size})
    return opened
