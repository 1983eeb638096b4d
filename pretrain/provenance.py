"""What a run was made of: data, machine, versions, command."""

import dataclasses
import os
import platform
import sys
from typing import Any

import numpy as np
import PIL
import timm
import torch
import torchvision

from ..datasets.plan.sources import parse_source
from ..datasets.remote.locations import redacted
from ..model_zoo.ranks import Ranks
from .config import PretrainSettings
from .pool import Pool


def describe(pool: Pool, ranks: Ranks, total_steps: int) -> dict[str, Any]:
    """Returns what `run.json` says of a run that is about to start."""
    return {
        "data_hash": pool.train.data_hash,
        "num_classes": len(pool.train.class_names),
        "num_samples": len(pool.train),
        "total_steps": total_steps,
        "world_size": ranks.world_size,
        "hardware": {"machine": platform.machine(), "cpus": os.cpu_count(), "device": str(ranks.device)},
        "versions": versions(),
        "command": [redacted(word) for word in sys.argv],
    }


def without_secrets(config: PretrainSettings) -> PretrainSettings:
    """Returns the settings as they may be recorded: addresses without credentials and signatures."""
    train = tuple(parse_source(text).shown for text in config.data.train)
    val = None if config.data.val is None else parse_source(config.data.val).shown
    return dataclasses.replace(config, data=dataclasses.replace(config.data, train=train, val=val))


def versions() -> dict[str, str]:
    """Returns the versions of what the numbers depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
    }
