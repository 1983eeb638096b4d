"""Features of a downstream set under the weights in training: computed by all ranks together, kept on one.

Letters: B batch, D features, N rows, W ranks.
"""

import contextlib
import dataclasses

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from ...cli.errors import DataError
from ...datasets.feature_folder import Matrix
from ...datasets.ranks import Ranks
from ...datasets.stores import ImageStore
from ...datasets.stream.batches import EvalBatches
from ...linear_probe.protocols.outcome import Rows
from ...linear_probe.splits import Indices
from ...model_zoo.backbone import Backbone, Precision
from ...model_zoo.features import SomeRows, alike_batches, as_stored
from ..batches import RunBatches
from ..stopping.preemption import Vote


@dataclasses.dataclass(eq=False)
class Gathered:
    """Features of some rows of a store on the rank that keeps them: [N, D] as numbered in the store, the other rows never written.

    What is never written takes no memory. float16 after a bf16 forward pass, else float32, as `bamboo features` keeps them.
    """

    matrix: Matrix
    fault: DataError | None = None
    """Why they are no good."""

    def rows(self, labels: npt.NDArray[np.int64]) -> Rows:
        """Returns the features with labels, for a protocol.

        Raises:
            DataError: when they are no good.
        """
        if self.fault is not None:
            raise self.fault
        return Rows(self.matrix, labels)

    def put(self, rows: Indices, features_BD: npt.NDArray[np.float32], precision: Precision, what: str) -> None:
        """Keeps the features of some rows; after a fault, nothing more."""
        try:
            if self.fault is None:
                self.matrix[rows] = as_stored(features_BD, precision, what)
        except DataError as fault:  # told later: raised now, it would leave the other ranks waiting for this one
            self.fault = fault


@dataclasses.dataclass(frozen=True)
class Extraction:
    """How all ranks compute features."""

    batches: RunBatches
    batch_size: int
    precision: Precision
    ranks: Ranks
    vote: Vote

    @torch.inference_mode()
    def gather(self, backbone: Backbone, store: ImageStore, rows: Indices, keeper: int, what: str) -> Gathered | None:
        """Returns the features of `rows` (ascending) of `store` on rank `keeper`, None elsewhere.

        Each batch has the shape in which `extract_features` computes these rows at the same batch size, so they are the features of the
        exported model bit for bit, on any number of ranks. Between batches the ranks vote; the keeper holds W batches besides the result.

        Raises:
            StopRequested: on all ranks, at a boundary.
        """
        is_keeper = self.ranks.rank == keeper
        gathered = None
        if is_keeper:
            shape = len(store), backbone.num_features
            gathered = Gathered(np.zeros(shape, np.float16) if self.precision == "bf16" else np.zeros(shape, np.float32))
        for stretch, size in alike_batches(len(store), self.batch_size):
            chosen = rows[np.searchsorted(rows, stretch.start) : np.searchsorted(rows, stretch.stop)]
            source = EvalBatches(SomeRows(store, chosen), backbone.preprocessing.view, size, self.ranks.rank, self.ranks.world_size)
            with contextlib.closing(self.batches.load(source, range(len(source)))) as batches:
                for number, batch in enumerate(batches):
                    self.vote.check("evaluation")
                    parts = self._collect(backbone.features(batch.images, self.precision), keeper)
                    for rank, features_BD in enumerate(parts):
                        start = (number * self.ranks.world_size + rank) * size
                        valid = chosen[start : start + size]
                        if gathered is not None and len(valid):
                            gathered.put(valid, features_BD[: len(valid)].cpu().numpy(), self.precision, what)
        return gathered

    def _collect(self, features_BD: torch.Tensor, keeper: int) -> list[torch.Tensor]:
        """Returns every rank's features on rank `keeper`, and nothing elsewhere."""
        if self.ranks.world_size == 1:
            return [features_BD]
        parts = [torch.empty_like(features_BD) for _ in range(self.ranks.world_size)] if self.ranks.rank == keeper else []
        dist.gather(features_BD.contiguous(), parts or None, dst=keeper)
        return parts
