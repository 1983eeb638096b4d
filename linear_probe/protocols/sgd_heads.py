"""The protocol `dino-linear`: linear heads trained by SGD at many learning rates side by side, on cached features.

Shape letters: B rows of a batch, D features, H heads, K classes, X = H · K.
"""

import dataclasses
import math

import numpy as np
import numpy.typing as npt
import torch

from ...cli.errors import DataError
from ..boundary import boundary
from ..metrics import Metric, score
from ..solver.problem import Matrix, full_float32
from .outcome import Clock, Curve, CurvePoint, Labels, Outcome, Protocol, Rows, check_sides, hold_out, row_blocks

_SCORED_ROWS = 4096
_STREAM = 1 << 191  # of Philox's counter, for the start; the orders of the rows begin at 2^128


@dataclasses.dataclass(frozen=True, eq=False)
class Heads:
    """Linear classifiers side by side: logits W x + b of each."""

    weight_HKD: torch.Tensor
    bias_HK: torch.Tensor

    @property
    def finite(self) -> npt.NDArray[np.bool_]:
        """bool[H]: whether all numbers of a head are finite."""
        finite_H = self.weight_HKD.isfinite().all(2).all(1) & self.bias_HK.isfinite().all(1)
        return finite_H.cpu().numpy()

    def predict(self, features: Matrix, rows: Labels) -> npt.NDArray[np.int64]:
        """Returns int64[H, len(rows)]: the class of each head's highest logit; features are read block by block."""
        with full_float32():
            blocks = row_blocks(features, rows, self.weight_HKD.device, _SCORED_ROWS)
            return np.concatenate([self.logits(block_BD).argmax(2).T.cpu().numpy() for block_BD in blocks], axis=1)

    def logits(self, features_BD: torch.Tensor) -> torch.Tensor:
        """Returns float32[B, H, K]."""
        logits_BX = torch.nn.functional.linear(features_BD, self.weight_HKD.flatten(0, 1), self.bias_HK.flatten())
        return logits_BX.view(len(features_BD), *self.bias_HK.shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DinoLinear(Protocol):
    """`dino-linear`: the linear evaluation of DINOv2 (Oquab et al. 2023) on features computed once.

    Thirteen heads, one a learning rate, are trained at once on the same batches: SGD with momentum 0.9 and no weight decay, 12,500 steps
    of 1,024 rows, learning rate · batch / 256 falling to 0 by a cosine, weights from N(0, 0.01²), biases from 0. The head that is best on
    the validation rows gives the learning rate, with which one head is trained on all rows from the same start, and tested once.

    Three things differ. The original crops and flips training images at random; cached features know no augmentation. It also tries
    features of several blocks; here there is the one that the backbone pools. And it picks the best head on the set that it reports.

    Batches go through one random order of the rows after another (Philox under the seed, one stream per pass), so the same seed trains
    the same heads on any number of loader processes.
    """

    learning_rates: tuple[float, ...]
    """Rising, for a batch of `lr_batch` rows."""

    num_steps: int
    batch_size: int
    lr_batch: int
    momentum: float
    init_std: float
    val_fraction: float
    """Share of the training rows that select where the set has no official validation part, stratified by class."""

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
        """As `Protocol.evaluate`.

        Raises:
            DataError: when every head diverges.
        """
        clock, device = Clock(), device or torch.device("cpu")
        check_sides(train, test)
        split = hold_out(train.labels, self.val_fraction, seed, validation_rows)
        clock.lap("prepare")
        heads = self.train(train, split.train, num_classes, self.learning_rates, seed, device)
        val_scores = [
            score(guess, train.labels[split.val], num_classes).metric(metric).value if finite else 0.0
            for guess, finite in zip(heads.predict(train.features, split.val), heads.finite, strict=True)
        ]
        if not heads.finite.any():
            raise DataError("dino-linear: SGD diverged at every learning rate; the features are too large for this protocol")
        best = int(np.argmax(np.where(heads.finite, val_scores, -1.0)))
        clock.lap("sweep")
        rows = np.flatnonzero(train.labels >= 0)
        final = self.train(train, rows, num_classes, self.learning_rates[best : best + 1], seed, device)
        clock.lap("refit")
        (predictions,) = final.predict(test.features, np.arange(len(test.features)))
        scores = score(predictions, test.labels, num_classes)
        clock.lap("test")
        points = tuple(CurvePoint(rate, value) for rate, value in zip(self.learning_rates, val_scores, strict=True))
        return Outcome(
            scores=scores,
            predictions=predictions,
            chosen={"learning_rate": self.learning_rates[best]},
            curve=Curve("learning rate", True, best, points),
            split=split,
            num_train=len(rows),
            num_val=len(split.val),
            num_test=int((test.labels >= 0).sum()),
            seconds=clock.laps,
            warnings=self._warnings(heads.finite, bool(final.finite[0]), best),
            details={"iterations": {"sweep": self.num_steps, "refit": self.num_steps}},
        )

    def train(self, side: Rows, rows: Labels, num_classes: int, rates: tuple[float, ...], seed: int, device: torch.device) -> Heads:
        """Returns one head per learning rate after `num_steps` of SGD on the rows, all from the same start.

        Every head minimises its own mean cross-entropy: one product of the batch with all heads forward, one backward.
        """
        order = RowOrder(len(rows), self.batch_size, seed)
        shape = (len(rates), num_classes, side.features.shape[1])
        generator = np.random.Generator(np.random.Philox(key=seed, counter=_STREAM))
        start_KD = torch.from_numpy(generator.standard_normal(shape[1:], np.float32) * np.float32(self.init_std))
        with full_float32():
            heads = Heads(start_KD.to(device).repeat(len(rates), 1, 1), torch.zeros(shape[:2], device=device))
            weight_velocity_HKD, bias_velocity_HK = torch.zeros_like(heads.weight_HKD), torch.zeros_like(heads.bias_HK)
            rate_H = torch.tensor(rates, device=device) * (self.batch_size / self.lr_batch)
            for step in range(self.num_steps):
                boundary()
                chosen = np.sort(rows[order.batch(step)])
                features_BD = torch.from_numpy(np.asarray(side.features[chosen], np.float32)).to(device)
                residual_BHK = _residual(heads.logits(features_BD), torch.from_numpy(side.labels[chosen]).to(device))
                weight_velocity_HKD.mul_(self.momentum).add_((residual_BHK.flatten(1).T @ features_BD).view(shape))
                bias_velocity_HK.mul_(self.momentum).add_(residual_BHK.sum(0))
                now_H = rate_H * (0.5 * (1.0 + math.cos(math.pi * step / self.num_steps)))
                heads.weight_HKD.sub_(now_H[:, None, None] * weight_velocity_HKD)
                heads.bias_HK.sub_(now_H[:, None] * bias_velocity_HK)
        return heads

    def _warnings(self, finite: npt.NDArray[np.bool_], final: bool, best: int) -> list[str]:
        found = []
        lost = [f"{rate:g}" for rate, is_finite in zip(self.learning_rates, finite, strict=True) if not is_finite]
        if lost:
            found.append(f"SGD diverged at learning rate {', '.join(lost)}")
        if not final:
            found.append("the head trained on all rows diverged")
        if len(finite) > 1 and best in (0, len(finite) - 1):
            found.append(f"the chosen learning rate is the {'lowest' if best == 0 else 'highest'} of the grid: the best may lie outside")
        return found


class RowOrder:
    """Random batches of `num_rows` row places: one random order after another, each drawn from a stream of its own."""

    def __init__(self, num_rows: int, batch_size: int, seed: int) -> None:
        self._num_rows, self._batch_size, self._seed = num_rows, batch_size, seed
        self._orders: dict[int, Labels] = {}

    def batch(self, step: int) -> Labels:
        """Returns the places int64[batch_size] of a step; a batch at the end of one order goes on in the next."""
        places = np.arange(step * self._batch_size, (step + 1) * self._batch_size)
        orders = places // self._num_rows
        return np.concatenate([self._order(int(number))[places[orders == number] % self._num_rows] for number in np.unique(orders)])

    def _order(self, number: int) -> Labels:
        if number not in self._orders:
            keys = np.random.Philox(key=self._seed, counter=(number + 1) << 128).random_raw(self._num_rows)
            self._orders = {kept: order for kept, order in self._orders.items() if kept >= number - 1}
            self._orders[number] = np.argsort(keys, kind="stable").astype(np.int64)
        return self._orders[number]


def _residual(logits_BHK: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    """Returns (softmax − one-hot labels) / B: the gradient of each head's mean cross-entropy in its logits."""
    places_BH1 = labels_B[:, None, None].expand(-1, logits_BHK.shape[1], 1)
    residual_BHK = logits_BHK.softmax(2)
    residual_BHK.scatter_add_(2, places_BH1, residual_BHK.new_full((1, 1, 1), -1.0).expand_as(places_BH1))
    return residual_BHK / len(labels_B)
