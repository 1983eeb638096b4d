"""Which engine runs a model, as the settings say."""

import os
from collections.abc import Callable
from typing import Any

import torch

from ...datasets.ranks import Ranks
from ..settings.pretrain import PretrainSettings
from .deepspeed_json import derive, merge, read_json
from .engine import Engine
from .plain import PlainEngine

Build = Callable[[torch.nn.Module], torch.optim.Optimizer]


def open_engine(config: PretrainSettings, module: torch.nn.Module, build: Build, ranks: Ranks) -> Engine:
    """Returns the engine of the settings around a whole model, equal on all ranks; `build` makes the optimiser of what it trains.

    Raises:
        UserError: when the engine's package is not installed, or a DeepSpeed JSON contradicts the settings.
    """
    how: dict[str, Any] = {
        "precision": config.run.precision,
        "clip_norm": config.optimizer.clip_norm,
        "compile_model": config.model.compile,
    }
    if config.engine.kind == "fsdp":
        from .fsdp import ShardedEngine

        return ShardedEngine(module, build, ranks, reshard=config.engine.reshard, **how)
    if config.engine.kind == "deepspeed":
        from .deepspeed import DeepSpeedEngine

        if config.model.compile:
            module.compile()
        return DeepSpeedEngine(module, build(module), ranks, tree=deepspeed_tree(config, ranks.world_size))
    return PlainEngine(module, build(module), ranks, **how)


def check_engine(config: PretrainSettings) -> None:
    """Raises UserError for a DeepSpeed JSON that is not readable or contradicts the settings; touches no device and no rank."""
    if config.engine.kind == "deepspeed":
        deepspeed_tree(config, int(os.environ.get("WORLD_SIZE", "1")))


def deepspeed_tree(config: PretrainSettings, world_size: int) -> dict[str, Any]:
    """Returns the JSON that DeepSpeed is given."""
    run, engine = config.run, config.engine
    ours = derive(
        zero_stage=engine.zero_stage,
        offload=engine.offload,
        precision=run.precision,
        clip_norm=config.optimizer.clip_norm,
        accumulate=run.accumulate,
        global_batch_size=run.global_batch_size,
        world_size=world_size,
    )
    path = engine.deepspeed_json
    return ours if path is None else merge(ours, read_json(path), path, run.global_batch_size)
