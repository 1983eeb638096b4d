"""The protocol `knn`: the vote of the nearest training images, without any training.

Shape letters: Q queries, B keys of a block, D features, J the largest k, K classes.
"""

import dataclasses
from typing import Any

import numpy as np
import torch

from ..boundary import boundary
from ..metrics import Metric, Scores, score
from ..solver.problem import Matrix, full_float32
from .outcome import Clock, Curve, CurvePoint, Labels, Outcome, Protocol, Rows, check_sides, hold_out, row_blocks

_QUERY_ROWS = 1024
_KEY_ROWS = 16384


@dataclasses.dataclass(frozen=True, kw_only=True)
class Knn(Protocol):
    """`knn`: the k nearest neighbours by cosine vote with weight exp(similarity / temperature).

    The classifier of Wu et al. (2018) as DINO evaluates it (Caron et al. 2021): features of length 1, k in 10, 20, 100, 200, temperature
    0.07. There the best k on the evaluation set is quoted; here k is chosen on the validation rows, with the other training rows as keys,
    among equals the smallest. Test rows are then scored once with all training rows as keys; the other k stand in `variants`.

    Equal similarities: the lower row number is nearer. Equal votes: the lower class id wins.
    """

    neighbours: tuple[int, ...]
    """Values of k, rising."""

    temperature: float
    val_fraction: float
    """Share of the training rows that select k where the set has no official validation part, stratified by class."""

    def evaluate(
        self,
        train: Rows,
        test: Rows,
        num_classes: int,
        metric: Metric,
        *,
        validation_rows: Labels | None = None,
        seed: int = 0,
        device: torch.device | None = None,
    ) -> Outcome:
        """As `Protocol.evaluate`."""
        clock, device = Clock(), device or torch.device("cpu")
        check_sides(train, test)
        split = hold_out(train.labels, self.val_fraction, seed, validation_rows)
        clock.lap("prepare")
        rows = np.flatnonzero(train.labels >= 0)
        guesses = self.vote(train, split.train, train.features, split.val, num_classes, device)
        val_scores = [score(guess, train.labels[split.val], num_classes).metric(metric).value for guess in guesses]
        best = int(np.argmax(val_scores))
        clock.lap("sweep")
        predictions = self.vote(train, rows, test.features, np.arange(len(test.features)), num_classes, device)
        scores = [score(guess, test.labels, num_classes) for guess in predictions]
        clock.lap("test")
        points = tuple(CurvePoint(float(k), value) for k, value in zip(self.neighbours, val_scores, strict=True))
        return Outcome(
            scores=scores[best],
            predictions=predictions[best],
            chosen={"k": float(self.neighbours[best])},
            curve=Curve("k", True, best, points),
            split=split,
            num_train=len(rows),
            num_val=len(split.val),
            num_test=int((test.labels >= 0).sum()),
            seconds=clock.laps,
            variants={f"k={k}": _variant(*found) for k, found in zip(self.neighbours, zip(scores, val_scores, strict=True), strict=True)},
            warnings=self._warnings(len(split.train), len(rows)),
        )

    def vote(
        self, keys: Rows, key_rows: Labels, queries: Matrix, query_rows: Labels, num_classes: int, device: torch.device
    ) -> list[Labels]:
        """Returns the classes int64[len(query_rows)] that each k votes for; a k above the number of keys is that number.

        Both matrices are read block by block; in memory stand 1,024 queries with the similarities of 16,384 keys.
        """
        found: list[list[torch.Tensor]] = [[] for _ in self.neighbours]
        with full_float32():
            for query_QD in row_blocks(queries, query_rows, device, _QUERY_ROWS):
                boundary()
                similarity_QJ, place_QJ = _nearest(query_QD, keys.features, key_rows, min(self.neighbours[-1], len(key_rows)))
                label_QJ = torch.from_numpy(keys.labels[key_rows[place_QJ.cpu().numpy()]]).to(device)
                weight_QJ = ((similarity_QJ.double() - similarity_QJ[:, :1].double()) / self.temperature).exp()
                for k, votes in zip(self.neighbours, found, strict=True):
                    total_QK = torch.zeros(len(query_QD), num_classes, dtype=torch.float64, device=device)
                    total_QK.scatter_add_(1, label_QJ[:, :k], weight_QJ[:, :k])
                    votes.append(total_QK.argmax(1))
        return [torch.cat(votes).cpu().numpy() for votes in found]

    def _warnings(self, num_keys: int, num_rows: int) -> list[str]:
        capped = [str(k) for k in self.neighbours if k > num_keys]
        if not capped:
            return []
        return [f"k = {', '.join(capped)} exceeds the keys there are: capped at {num_keys} to choose and at {num_rows} to test"]


def _nearest(query_QD: torch.Tensor, keys: Matrix, key_rows: Labels, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns cosines float32[Q, count] and places int64[Q, count] in `key_rows` of the nearest keys, nearest first."""
    query_QD = torch.nn.functional.normalize(query_QD)
    best_QJ = torch.empty(len(query_QD), 0, device=query_QD.device)
    place_QJ = torch.empty(len(query_QD), 0, dtype=torch.int64, device=query_QD.device)
    start = 0
    for key_BD in row_blocks(keys, key_rows, query_QD.device, _KEY_ROWS):
        cosine_QB = query_QD @ torch.nn.functional.normalize(key_BD).T
        best_QB, place_QB = _largest(cosine_QB, min(count, len(key_BD)))
        both_QJ, places_QJ = torch.cat([best_QJ, best_QB], 1), torch.cat([place_QJ, place_QB + start], 1)
        best_QJ, order_QJ = both_QJ.sort(dim=1, descending=True, stable=True)  # earlier blocks stand first: ties keep their order
        best_QJ, place_QJ = best_QJ[:, :count], places_QJ.gather(1, order_QJ[:, :count])
        start += len(key_BD)
    return best_QJ, place_QJ


def _largest(values_QB: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the `count` largest of each row and their places, falling; among equals the lower place comes first, and gets in first."""
    found_QJ, place_QJ = values_QB.topk(count, dim=1)
    torn_Q = (values_QB >= found_QJ[:, -1:]).sum(1) > count  # topk takes any of the equals at its end
    if bool(torn_Q.any()):
        value_TB, order_TB = values_QB[torn_Q].sort(dim=1, descending=True, stable=True)
        found_QJ[torn_Q], place_QJ[torn_Q] = value_TB[:, :count], order_TB[:, :count]
    place_QJ = place_QJ.sort(dim=1).values
    found_QJ, order_QJ = values_QB.gather(1, place_QJ).sort(dim=1, descending=True, stable=True)
    return found_QJ, place_QJ.gather(1, order_QJ)


def _variant(scores: Scores, val_score: float) -> dict[str, Any]:
    both = {"top1": scores.top1, "mean_per_class": scores.mean_per_class}
    shown = {name: {"value": accuracy.value, "standard_error": accuracy.standard_error} for name, accuracy in both.items()}
    return {**shown, "val_score": val_score}
