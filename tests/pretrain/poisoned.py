"""Runs several jobs, some with a fault, in one set of ranks: `torchrun … -m tests.pretrain.poisoned JOBS.json`.

A fault makes one rank's loss, or only its gradient, NaN in some steps; or leaves those steps out altogether, on every rank, which is
what a skipped step is to equal. How each job ended is written to `ending-JOB-RANK.txt` beside the jobs.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from bamboo.cli.errors import BambooError
from bamboo.model_zoo.ranks import Ranks, start_ranks
from bamboo.pretrain.trainer import Trainer
from tests.pretrain.relay import execute


@contextmanager
def fault(how: str, steps: list[int], rank: int) -> Iterator[None]:
    """Puts a fault into every trainer: "loss", "gradient", "absent" or "none", in these steps (counted from 1)."""
    part_loss, whole_step = Trainer._part_loss, Trainer.step

    def faulty_loss(self: Trainer, batch: Any, rows: slice, step: int) -> torch.Tensor:
        loss = part_loss(self, batch, rows, step)
        if step + 1 not in steps or self.ranks.rank != rank:
            return loss
        # the root of a zero is finite, and its slope is not
        return loss * torch.nan if how == "loss" else loss + torch.sqrt(loss * 0)

    def absent_step(self: Trainer, batch: Any, step: int) -> Any:
        if step + 1 not in steps:
            return whole_step(self, batch, step)
        norm = torch.tensor(torch.nan)
        return torch.zeros(()), norm, self.health.nonfinite.made(norm)

    with pytest.MonkeyPatch.context() as patch:
        if how in ("loss", "gradient"):
            patch.setattr(Trainer, "_part_loss", faulty_loss)
        if how == "absent":
            patch.setattr(Trainer, "step", absent_step)
        yield


def main(file: Path) -> None:
    """Runs all jobs."""
    ranks = start_ranks("cpu")
    for number, job in enumerate(json.loads(file.read_text())):
        (file.parent / f"ending-{number}-{ranks.rank}.txt").write_text(ending(job, ranks))
        ranks.barrier()
    ranks.close()


def ending(job: dict[str, Any], ranks: Ranks) -> str:
    """Runs one job; returns how it ended."""
    with fault(job["how"], job["steps"], job["rank"]):
        try:
            execute(job, ranks)
        except BambooError as error:
            return f"{type(error).__name__}: {error}"
    return "done"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
