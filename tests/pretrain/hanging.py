"""`bamboo pretrain` with a rank that hangs: `torchrun … -m tests.pretrain.hanging WHERE STEP RANK …` and a run's arguments.

WHERE is "loader", "forward" or "evaluation"; the rank hangs there in that step (counted from 1), as long as it may.
"""

import sys
import time
from collections.abc import Iterator
from typing import Any

from bamboo.cli.main import run
from bamboo.pretrain.batches import RunBatches
from bamboo.pretrain.evaluators import evaluations
from bamboo.pretrain.trainer import Trainer

where, hang_step, hang_rank = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
training, part_loss, evaluate = RunBatches.training, Trainer._part_loss, evaluations.evaluate


def hanging_training(self: RunBatches, order: Any, phases: Any, numbers: range, offset: int) -> Iterator[Any]:
    for number, batch in zip(numbers, training(self, order, phases, numbers, offset), strict=True):
        if number + 1 == hang_step and self.ranks.rank == hang_rank:
            time.sleep(600)
        yield batch


def hanging_part_loss(self: Trainer, batch: Any, rows: slice, step: int) -> Any:
    with self.operations.during("forward"):
        if step + 1 == hang_step and self.ranks.rank == hang_rank:
            time.sleep(600)
    return part_loss(self, batch, rows, step)


def hanging_evaluate(module: Any, normalize: Any, batches: Any, ranks: Any, *more: Any) -> Any:
    def slow() -> Iterator[Any]:
        for number, batch in enumerate(batches):
            if number == 1 and ranks.rank == hang_rank:
                time.sleep(600)
            yield batch

    return evaluate(module, normalize, slow(), ranks, *more)


if where == "loader":
    RunBatches.training = hanging_training  # type: ignore[method-assign]  # the fault of this test
if where == "forward":
    Trainer._part_loss = hanging_part_loss  # type: ignore[method-assign]  # the fault of this test
if where == "evaluation":
    evaluations.evaluate = hanging_evaluate
sys.exit(run("pretrain", sys.argv[4:]))
