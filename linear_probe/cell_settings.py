"""Settings that `bamboo probe` and `bamboo multi_run` share: how a cell is evaluated, wherever it is started."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ..cli.config import settings


@settings
class CellSettings:
    """How features are computed and where results go."""

    any_counts: bool = False
    """Accept other numbers of images than the set's official ones."""
    out: Path = Path("runs/probe")
    """Folder of results.jsonl, and of one folder per evaluation."""
    cache: Path = Path("runs/features")
    """Folder of feature folders."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """bf16: autocast forward, features stored as float16; fp32: both float32."""
    image_size: Annotated[int, Field(ge=8, le=2048)] | None = None
    """Side in pixels; none: what the checkpoint's preprocessing says."""
    batch_size: Annotated[int, Field(ge=1)] = 256
    """Images per forward pass."""
    workers: Annotated[int, Field(ge=0, le=256)] = 1
    """Loader processes."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes CUDA where there is one."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the validation split and the subset, and of the weights of an untrained checkpoint."""
    force: bool = False
    """Evaluate again although the same evaluation has a row."""
    dry_run: bool = False
    """Check and say what would be done, then stop."""
