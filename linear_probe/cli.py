"""The verb `probe`: how good is a backbone on a downstream set?

    bamboo probe --checkpoint runs/tiny --dataset cifar10 --data-root data/cifar10

Frozen features are computed once; multinomial logistic regression is solved to a certified optimum, its λ chosen on a validation
split, and the test set is evaluated once. An evaluation whose row exists already is printed, not repeated.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from ..cli.arguments import parse
from ..cli.config import settings
from ..cli.errors import UserError

if TYPE_CHECKING:
    from .results import ResultRow


@settings
class ProbeSettings:
    """Everything `bamboo probe` can be told."""

    checkpoint: str
    """A run folder, a .safetensors file, timm:NAME, untrained:NAME_OR_RUN or pixels:SIZE."""
    dataset: Literal["cifar10", "folder", "shards"]
    """Name of the set; folder and shards are sets of one's own."""
    data_root: Path
    """Folder in which the set lies."""
    any_counts: bool = False
    """Accept other numbers of images than the set's official ones."""
    out: Path = Path("runs/probe")
    """Folder of results.jsonl, and of one folder per evaluation."""
    cache: Path = Path("runs/features")
    """Folder of feature folders."""
    protocol: Literal["standard"] = "standard"
    """How λ is chosen and what is reported."""
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
    """Of the validation split, and of the weights of an untrained checkpoint."""
    force: bool = False
    """Evaluate again although the same evaluation has a row."""
    dry_run: bool = False
    """Check and say what would be done, then stop."""


SETTINGS = {"": ProbeSettings}


def main(argv: Sequence[str]) -> int:
    """Runs `bamboo probe` and returns its exit code."""
    config = parse(ProbeSettings, argv, prog="bamboo probe", doc=__doc__ or "", positional=("checkpoint",))
    return run_probe(config)


def run_probe(config: ProbeSettings) -> int:
    """Evaluates one cell, or prints the row that it has, and returns the exit code."""
    from ..model_zoo.backbone import open_backbone  # torch is imported only once the settings are known to be right
    from ..model_zoo.ranks import start_ranks
    from .probe import Extraction, open_cell, recorded, run
    from .protocol import PROTOCOLS
    from .results import FILE_NAME

    ranks = start_ranks(config.device)
    if ranks.world_size > 1:
        ranks.close()
        raise UserError(f"world_size={ranks.world_size}: a probe runs in one process; many compute its features with: bamboo features")
    device = ranks.device
    ranks.share_cores(config.workers)
    backbone = open_backbone(config.checkpoint, seed=config.seed, image_size=config.image_size)
    cell = open_cell(
        backbone,
        config.dataset,
        config.data_root,
        PROTOCOLS[config.protocol],
        precision=config.precision,
        seed=config.seed,
        any_counts=config.any_counts,
    )
    row = None if config.force else recorded(cell, config.out)
    if row is not None:
        sys.stdout.write(f"{_line(row)}\nrecorded {row.date} in {config.out / FILE_NAME}; --force evaluates again\n")
        return 0
    if config.dry_run:
        sizes = f"{len(cell.train):,} train and {len(cell.test):,} test images, {len(cell.train.class_names)} classes"
        sys.stdout.write(f"would evaluate {backbone.name} on {config.dataset} ({sizes}) under {config.protocol}, on {device}\n")
        return 0
    row = run(cell, Extraction(cache=config.cache, batch_size=config.batch_size, workers=config.workers, device=device), config.out)
    sys.stdout.write(f"{_line(row)}\n{config.out / row.details['folder']}\nrow in {config.out / FILE_NAME}\n")
    return 0


def _line(row: "ResultRow") -> str:
    from .probe import warnings

    named = {"top1": "top-1", "mean_per_class": "mean per class"}
    scores = ", ".join(
        f"{named[name]} {100 * score['value']:.2f} ± {100 * score['standard_error']:.2f} %" for name, score in row.scores.items()
    )
    solved = f"λ = {row.details['penalty']:.3g}, relative gap ≤ {row.certificate['relative_gap']:.1e}"
    line = f"{row.model} on {row.dataset} ({row.protocol}): {scores}; {solved}"
    return "\n".join([line, *(f"warning: {warning}" for warning in warnings(row))])
