"""`dino-linear` against torch's own optimiser and schedule, head by head."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from bamboo.cli.errors import DataError
from bamboo.linear_probe.protocols.outcome import Rows
from bamboo.linear_probe.protocols.registry import DINO_LINEAR
from bamboo.linear_probe.protocols.sgd_heads import Heads, RowOrder
from tests.linear_probe.clouds import sides

CPU = torch.device("cpu")
SHORT = dataclasses.replace(DINO_LINEAR, num_steps=60, batch_size=128, learning_rates=(1e-3, 1e-2, 1e-1))


def test_every_head_is_what_torchs_sgd_makes() -> None:
    """60 steps of SGD(momentum 0.9) with CosineAnnealingLR on the same batches, one head at a time: weights to 5 digits."""
    train, _ = sides()
    rows = np.arange(0, 600, 2)
    found = SHORT.train(train, rows, 5, SHORT.learning_rates, 3, CPU)
    start = dataclasses.replace(SHORT, num_steps=0).train(train, rows, 5, (1.0,), 3, CPU)
    order = RowOrder(300, 128, 3)
    for number, rate in enumerate(SHORT.learning_rates):
        head = torch.nn.Linear(16, 5)
        head.load_state_dict({"weight": start.weight_HKD[0].clone(), "bias": torch.zeros(5)})
        optimizer = torch.optim.SGD(head.parameters(), lr=rate * 128 / 256, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, SHORT.num_steps)
        for step in range(SHORT.num_steps):
            chosen = rows[order.batch(step)]
            optimizer.zero_grad()
            logits = head(torch.from_numpy(train.features[chosen].astype(np.float32)))
            torch.nn.functional.cross_entropy(logits, torch.from_numpy(train.labels[chosen])).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()
            schedule.step()
        torch.testing.assert_close(found.weight_HKD[number].clone(), head.weight.detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.bias_HK[number].clone(), head.bias.detach(), rtol=1e-4, atol=1e-5)
    assert 0.008 < float(start.weight_HKD.std()) < 0.012


def test_batches_are_one_order_after_another() -> None:
    """Batches of 7 of 10 rows: each stretch of 10 is a permutation, two orders differ, any step can be asked for, the seed decides."""
    order = RowOrder(10, 7, 0)
    drawn = np.concatenate([order.batch(step) for step in range(10)]).reshape(7, 10)
    assert all(sorted(line) == list(range(10)) for line in drawn.tolist())
    assert len({tuple(line) for line in drawn.tolist()}) == 7
    assert order.batch(2).tolist() == drawn.flatten()[14:21].tolist()
    assert RowOrder(10, 7, 1).batch(0).tolist() != drawn.flatten()[:7].tolist()
    assert RowOrder(3, 7, 0).batch(0).shape == (7,)


def test_the_best_head_is_trained_on_all_rows(tmp_path: Path) -> None:
    """The learning rate with the highest validation score, then one head on all rows; the same bits again, also from a memory map."""
    train, test = sides()
    outcome = SHORT.evaluate(train, test, 5, "top1")
    assert outcome.split is not None
    assert outcome.curve is not None
    heads = SHORT.train(train, outcome.split.train, 5, SHORT.learning_rates, 0, CPU)
    right = heads.predict(train.features, outcome.split.val) == train.labels[outcome.split.val]
    assert [point.val_score for point in outcome.curve.points] == pytest.approx(right.mean(1).tolist())
    rate = SHORT.learning_rates[int(np.argmax(right.mean(1)))]
    assert outcome.chosen == {"learning_rate": rate}
    (expected,) = SHORT.train(train, np.arange(600), 5, (rate,), 0, CPU).predict(test.features, np.arange(300))
    assert (outcome.predictions == expected).all()
    np.save(tmp_path / "features.npy", train.features)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    assert (SHORT.evaluate(Rows(mapped, train.labels), test, 5, "top1").predictions == outcome.predictions).all()


def test_a_diverged_head_is_said_and_never_chosen() -> None:
    """A learning rate of 10³⁸ beside a sensible one: named in a warning, the other one chosen; alone: an error."""
    wild = dataclasses.replace(SHORT, learning_rates=(1e-2, 1e38))
    outcome = wild.evaluate(*sides(), 5, "top1")
    assert outcome.chosen == {"learning_rate": 1e-2}
    assert "SGD diverged at learning rate 1e+38" in outcome.warnings
    assert not Heads(torch.tensor([[[torch.nan]]]), torch.zeros(1, 1)).finite.any()
    with pytest.raises(DataError, match="diverged at every learning rate"):
        dataclasses.replace(SHORT, learning_rates=(1e38,)).evaluate(*sides(), 5, "top1")
