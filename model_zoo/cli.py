"""The verb `features`: a backbone's pooled features of a shard folder, computed once and kept.

One process:     bamboo features --checkpoint runs/tiny --data shards/train
Many processes:  torchrun --nproc-per-node 8 -m bamboo.cli features --checkpoint runs/tiny --data shards/train

A killed run goes on where it stopped; a finished folder is not computed again.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ..cli.arguments import parse
from ..cli.config import settings


@settings
class FeaturesSettings:
    """Everything `bamboo features` can be told."""

    checkpoint: str
    """A run folder, a .safetensors file, zoo:ID, FILE@NAME, timm:NAME, untrained:NAME_OR_RUN or pixels:SIZE."""
    data: Path
    """Shard folder."""
    out: Path = Path("runs/features")
    """Folder of feature folders."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """bf16: autocast forward, stored as float16; fp32: both float32."""
    image_size: Annotated[int, Field(ge=8, le=2048)] | None = None
    """Side in pixels; none: what the checkpoint's preprocessing says."""
    batch_size: Annotated[int, Field(ge=1)] = 256
    """Images per forward pass."""
    workers: Annotated[int, Field(ge=0, le=256)] = 1
    """Loader processes per rank."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes CUDA where there is one."""
    seed: int = 0
    """Weights of an untrained checkpoint."""


SETTINGS = {"": FeaturesSettings}


def main(argv: Sequence[str]) -> int:
    """Runs `bamboo features` and returns its exit code."""
    config = parse(FeaturesSettings, argv, prog="bamboo features", doc=__doc__ or "", positional=("checkpoint", "data"))
    from ..datasets.ranks import start_ranks
    from ..datasets.shards import Shards  # torch is imported only once the settings are known to be right
    from .backbone import open_backbone
    from .features import extract_features

    shards = Shards.open(config.data)
    ranks = start_ranks(config.device)
    ranks.share_cores(config.workers)
    try:
        folder = extract_features(
            open_backbone(config.checkpoint, seed=config.seed, image_size=config.image_size),
            shards,
            config.out,
            precision=config.precision,
            batch_size=config.batch_size,
            workers=config.workers,
            device=ranks.device,
            what=str(config.data),
            ranks=ranks,
        )
        if ranks.is_first:
            rows, width = folder.features.shape
            sys.stdout.write(f"{folder.path}: {rows} × {width} {folder.features.dtype}\n")
    finally:
        ranks.close()
    return 0
