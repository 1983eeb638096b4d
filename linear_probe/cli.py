"""The verb `probe`: how good is a backbone on a downstream set?

One process:     bamboo probe --checkpoint runs/tiny --dataset cifar10 --data-root data/cifar10
Many processes:  torchrun --nproc-per-node 8 -m bamboo.cli probe --checkpoint runs/tiny --dataset cifar10 --data-root data/cifar10

Frozen features are computed once, by all processes together; then one of them carries out the protocol. Under `standard`, multinomial
logistic regression is solved to a certified optimum, its λ chosen on a validation split, and the test set is evaluated once. An
evaluation whose row exists already is printed, not repeated.
"""

import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..cli.arguments import parse
from ..cli.config import settings
from .cell_settings import CellSettings

if TYPE_CHECKING:
    from ..datasets.ranks import Ranks
    from .probe import Cell, CellFeatures
    from .results import ResultRow


@settings
class ProbeSettings(CellSettings):
    """Everything `bamboo probe` can be told."""

    checkpoint: str
    """A run folder, a .safetensors file, timm:NAME, untrained:NAME_OR_RUN or pixels:SIZE."""
    dataset: str
    """Name of the set; folder and shards are sets of one's own."""
    data_root: Path
    """Folder in which the set lies."""
    protocol: Literal["standard", "clip", "bamboo-2022", "knn", "dino-linear"] = "standard"
    """How hyper-parameters are chosen and what is reported; numbers of two protocols do not compare."""
    subset: str = "100p"
    """Training rows in use: 100p, 10p, 1p … of every class, or 1shot, 5shot, … rows of every class."""
    model_name: str | None = None
    """Name in the table; none: the checkpoint's own."""


SETTINGS = {"": ProbeSettings}


def main(argv: Sequence[str]) -> int:
    """Runs `bamboo probe` and returns its exit code."""
    config = parse(ProbeSettings, argv, prog="bamboo probe", doc=__doc__ or "", positional=("checkpoint",))
    return run_probe(config)


def run_probe(config: ProbeSettings) -> int:
    """Evaluates one cell, or prints the row that it has, and returns the exit code."""
    from ..datasets.downstream.sets import describe  # torch is imported only once the settings are known to be right
    from ..datasets.ranks import start_ranks
    from .probe import evaluate_cell
    from .results import FILE_NAME
    from .subsets import parse_subset

    describe(config.dataset)
    parse_subset(config.subset)
    ranks = start_ranks(config.device)
    ranks.share_cores(config.workers)
    try:
        prepared = _prepare(config, ranks)
    finally:
        ranks.close()
    if prepared is None or not ranks.is_first:
        return 0  # the other processes end here: nobody waits for the solver, so no timeout can end it
    if ranks.world_size > 1:
        _take_all_cores()
    row = evaluate_cell(*prepared, ranks.device, config.out, force=config.force)
    sys.stdout.write(f"{_line(row)}\n{config.out / row.details['folder']}\nrow in {config.out / FILE_NAME}\n")
    return 0


def _prepare(config: ProbeSettings, ranks: "Ranks") -> "tuple[Cell, CellFeatures] | None":
    """Returns the cell with its features, the work of all processes; None, and a word on standard output, where nothing is to be done."""
    from .probe import Extraction, cell_features, look_up, recorded
    from .results import FILE_NAME

    cell = _open(config)
    row = None
    if ranks.is_first and not config.force:
        row = look_up(cell, config.out)[0] if config.dry_run else recorded(cell, config.out)
    is_there = ranks.from_first("yes" if row is not None else "no") == "yes"
    if row is not None:
        sys.stdout.write(f"{_line(row)}\nrecorded {row.date} in {config.out / FILE_NAME}; --force evaluates again\n")
    elif config.dry_run and ranks.is_first:
        sizes = f"{len(cell.rows):,} train and {len(cell.splits.test):,} test images, {len(cell.splits.train.class_names)} classes"
        sys.stdout.write(f"would evaluate {cell.model} on {config.dataset} ({sizes}) under {config.protocol}, on {ranks.device}\n")
    if is_there or config.dry_run:
        return None
    extraction = Extraction(cache=config.cache, batch_size=config.batch_size, workers=config.workers, device=ranks.device)
    return cell, cell_features(cell, extraction, ranks)


def _open(config: ProbeSettings) -> "Cell":
    from ..model_zoo.backbone import open_backbone
    from .probe import open_cell, open_splits
    from .protocols.registry import PROTOCOLS

    return open_cell(
        open_backbone(config.checkpoint, seed=config.seed, image_size=config.image_size),
        config.dataset,
        open_splits(config.dataset, config.data_root, any_counts=config.any_counts),
        PROTOCOLS[config.protocol],
        precision=config.precision,
        seed=config.seed,
        subset=config.subset,
        model=config.model_name,
    )


def _take_all_cores() -> None:
    """Gives the solver the threads of the processes that have ended."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))


def _line(row: "ResultRow") -> str:
    named = {"top1": "top-1", "mean_per_class": "mean per class"}
    scores = ", ".join(
        f"{named[name]} {100 * score['value']:.2f} ± {100 * score['standard_error']:.2f} %" for name, score in row.scores.items()
    )
    facts = [f"{name} = {value:.4g}" for name, value in row.details.get("chosen", {}).items()]
    if math.isfinite(row.certificate.get("relative_gap", math.inf)):
        facts.append(f"relative gap ≤ {row.certificate['relative_gap']:.1e}")
    subset = "" if row.subset == "100p" else f", {row.subset}"
    line = f"{row.model} on {row.dataset} ({row.protocol}{subset}): {'; '.join([scores, *facts])}"
    return "\n".join([line, *(f"warning: {warning}" for warning in row.details.get("warnings", []))])
