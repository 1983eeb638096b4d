"""Runs several jobs, some with a fault, in one set of ranks: `torchrun … -m tests.pretrain.poisoned JOBS.json`.

Faults make one rank's loss, only its gradient, or only the loss's value not finite in some steps; or leave those steps out altogether, on
every rank, which is what a skipped step is to equal. How each job ended is written to `ending-JOB-RANK.txt` beside the jobs.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from bamboo.cli.errors import BambooError
from bamboo.datasets.ranks import Ranks, start_ranks
from bamboo.pretrain.trainer import Trainer
from tests.pretrain.relay import execute


@contextmanager
def fault(faults: Mapping[str, str], rank: int) -> Iterator[None]:
    """Puts faults into every trainer: step (counted from 1) → "loss", "gradient", "value" or "absent"."""
    part_loss, whole_step = Trainer._part_loss, Trainer.step

    def faulty_loss(self: Trainer, batch: Any, rows: slice, step: int) -> torch.Tensor:
        loss = part_loss(self, batch, rows, step)
        how = faults.get(str(step + 1)) if self.ranks.rank == rank else None
        if how == "value":
            return loss + torch.inf  # whose slope is zero
        if how == "gradient":
            return loss + torch.sqrt(loss * 0)  # a root, whose slope is not finite where it is zero
        return loss * torch.nan if how == "loss" else loss

    def absent_step(self: Trainer, batch: Any, step: int) -> Any:
        if faults.get(str(step + 1)) != "absent":
            return whole_step(self, batch, step)
        norm = torch.tensor(torch.nan)
        return torch.zeros(()), norm, self.health.nonfinite.made(norm)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_part_loss", faulty_loss)
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
    with fault(job["faults"], job["rank"]):
        try:
            execute(job, ranks)
        except BambooError as error:
            return f"{type(error).__name__}: {error}"
    return "done"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
