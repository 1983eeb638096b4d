"""Accuracy on the validation split, sharded over ranks and equal on any number of them.

Letters: B batch, K classes.
"""

import dataclasses
from collections.abc import Iterable

import torch
from torch.nn.functional import cross_entropy

from ...cli.errors import DataError
from ...datasets.ranks import Ranks
from ...datasets.stream.batches import Batch
from ...model_zoo.preprocessing import Normalize
from ..stopping.preemption import Vote


@dataclasses.dataclass(frozen=True)
class Score:
    """Accuracies in [0, 1] over `num_images` images, and the mean cross-entropy."""

    top1: float
    top5: float
    loss: float
    num_images: int


@torch.inference_mode()
def evaluate(
    module: torch.nn.Module, normalize: Normalize, batches: Iterable[Batch], ranks: Ranks, precision: str, vote: Vote | None = None
) -> Score:
    """Returns the score of `module` over all ranks' batches.

    Hits are counted as integers and rows that are padding or unlabelled are left out, so accuracies do not depend on the
    number of ranks; rank 0's buffers (batch-norm statistics) are used by all.

    Raises:
        StopRequested: at a boundary between batches, where a `vote` was for the end.
    """
    share_buffers(module, ranks)
    was_training = module.training
    module.eval()
    counts = torch.zeros(3, dtype=torch.int64, device=ranks.device)  # images, top-1 hits, top-5 hits
    loss = torch.zeros((), dtype=torch.float64, device=ranks.device)
    for batch in batches:
        if vote is not None:
            vote.check("evaluation")
        images, labels = (tensor.to(ranks.device, non_blocking=True) for tensor in (batch.images, batch.labels))
        with torch.autocast(ranks.device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits_BK = module(normalize(images)).float()
        known = labels >= 0
        top = logits_BK.topk(min(5, logits_BK.shape[1]), dim=1).indices
        hits = (top == labels[:, None]) & known[:, None]
        counts += torch.stack([known.sum(), hits[:, 0].sum(), hits.sum()])
        loss += cross_entropy(logits_BK, labels, ignore_index=-1, reduction="sum").double()
    module.train(was_training)
    num_images, top1, top5 = ranks.sum(counts).tolist()
    if num_images == 0:
        raise DataError("the validation split holds no labelled image")
    return Score(top1 / num_images, top5 / num_images, float(ranks.sum(loss)) / num_images, num_images)


def share_buffers(module: torch.nn.Module, ranks: Ranks) -> None:
    """Gives all ranks the buffers of rank 0 (batch-norm statistics), which are those that are saved and exported."""
    if ranks.world_size > 1:
        for buffer in module.buffers():
            torch.distributed.broadcast(buffer, src=0)
