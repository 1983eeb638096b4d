"""Losses that weigh by how often their samples are drawn: the objective against numpy, batches against the plan, and runs."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from bamboo.datasets.augment.crops import TrainView
from bamboo.datasets.plan.loss_weights import LossWeights, version_weights
from bamboo.datasets.plan.order import Order
from bamboo.datasets.plan.recipe import PlannedSource, PlanRecipe
from bamboo.datasets.plan.weighting import Weighting, compile_rates
from bamboo.datasets.shards import Shards
from bamboo.datasets.stream.batches import TrainBatches
from bamboo.datasets.stream.loader import WorkerKind, load_batches
from bamboo.pretrain.log import read_log
from bamboo.pretrain.objective import Objective
from bamboo.pretrain.settings.pretrain import ObjectiveSettings
from tests.pretrain.test_sampling import back, run, stream

Floats = npt.NDArray[np.float64]

MIXED = {"mixup": 0.8, "label_smoothing": 0.1}


def dense(labels: torch.Tensor, smoothing: float) -> Floats:
    """Returns float64[B, 5] smoothed targets."""
    return np.asarray(np.eye(5)[labels.numpy()] * (1 - smoothing) + smoothing / 5)


@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
@pytest.mark.parametrize("mixed", [{"label_smoothing": 0.0}, MIXED])
def test_the_gradient_of_a_weighted_loss(loss: str, mixed: dict[str, float]) -> None:
    """Against numpy's Σ w · loss and w · (softmax - target), of bce w · (sigmoid - target) / K, in float64 to 1e-6; unlike weights."""
    objective = Objective(ObjectiveSettings(loss=loss, **mixed), seed=3)  # type: ignore[arg-type]  # one of the two
    random = np.random.default_rng(0)
    labels, values = torch.arange(8) % 5, random.normal(0, 3, (8, 5))
    weights = 10 ** random.uniform(-1, 1, 8)
    _, targets = objective.mix(torch.zeros(8, 3, 16, 16), labels, step=1)
    wanted = targets.share * dense(labels, mixed["label_smoothing"])
    if targets.partners is not None:
        wanted += (1 - targets.share) * dense(targets.partners, mixed["label_smoothing"])
    if loss == "bce":
        per_image = (np.logaddexp(0, values) - wanted * values).mean(1)
        slope = (1 / (1 + np.exp(-values)) - wanted) / 5
    else:
        per_image = np.log(np.exp(values).sum(1)) - (wanted * values).sum(1)
        slope = np.exp(values) / np.exp(values).sum(1, keepdims=True) - wanted
    logits = torch.tensor(values, requires_grad=True)
    found = objective.loss_sum(logits, targets, torch.from_numpy(weights))
    (gradient,) = torch.autograd.grad(found, logits)
    assert found.item() == pytest.approx((weights * per_image).sum(), rel=1e-6)
    assert np.allclose(gradient.numpy(), weights[:, None] * slope, atol=1e-6)
    even = objective.loss_sum(logits, targets, torch.ones(8, dtype=torch.float64))
    assert even.item() == pytest.approx(objective.loss_sum(logits, targets).item(), rel=1e-12)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A weight column of the 101, from 0 to 1."""
    path = tmp_path / "weights.npy"
    np.save(path, np.linspace(0, 1, 101).astype(np.float32))
    return path


@pytest.mark.parametrize(("workers", "kind"), [(0, "processes"), (2, "processes"), (2, "threads")])
def test_batches_bring_their_weights(pool: Path, tmp_path: Path, weights: Path, workers: int, kind: WorkerKind) -> None:
    """Each row of three batches of both ranks: the weight of its own sample; without weights there is no column."""
    shards = Shards.open(pool / "train")
    compile_rates(Weighting(weights=weights), shards.index, shards.shard_counts, tmp_path / "rates", "weights")
    recipe = PlanRecipe(0, 2, False, (PlannedSource(shards.data_hash, 0, "rates"),))
    column = LossWeights([0], [version_weights(recipe, [shards.shard_counts], tmp_path, 0.5)])
    order = recipe.order([shards.shard_counts], tmp_path, 0)
    view = TrainView(16, scale=(0.3, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5, interpolation="bilinear")
    for rank in range(2):
        source = TrainBatches(shards, order, view, 12, rank, 2, repeats=2, weights=column)
        for batch in load_batches(source, range(3), workers=workers, kind=kind):
            assert batch.weights is not None
            assert batch.weights.numpy().tolist() == column.of(np.zeros(6, np.int64), batch.ids.numpy()).tolist()
            assert len(set(batch.weights.tolist())) > 3
    bare = TrainBatches(shards, Order(shards.shard_counts, seed=0, window=2), view, 12, 0, 2)
    assert next(iter(load_batches(bare, range(1), workers=0))).weights is None


def test_a_weighted_loss_is_the_runs_own(pool: Path, tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The stream of the run without, other losses from the first step on; the same resumed, and in two parts a step; pinned."""
    settings = {"sampling__weights": str(weights), "run__checkpoint_every": "5 steps"}
    corrected = settings | {"sampling__loss_beta": "0.5"}
    assert run(pool, tmp_path / "without", **settings) == 0
    assert run(pool, tmp_path / "run", **corrected) == 0
    assert stream(tmp_path / "run") == stream(tmp_path / "without")
    losses = [row["loss"] for row in read_log(tmp_path / "run", "train")]
    assert losses[0] != read_log(tmp_path / "without", "train")[0]["loss"]
    back(tmp_path / "run", 12)
    assert run(pool, tmp_path / "run", **corrected) == 0
    assert [row["loss"] for row in read_log(tmp_path / "run", "train")] == losses
    assert run(pool, tmp_path / "parts", **corrected, run__accumulate="2") == 0
    assert [row["loss"] for row in read_log(tmp_path / "parts", "train")] == pytest.approx(losses, rel=1e-4)
    assert run(pool, tmp_path / "run", **settings) == 2
    assert "sampling.loss_beta: was 0.5, is 0.0" in capsys.readouterr().err


@pytest.mark.parametrize(("more", "why"), [({}, "every sample is taken once"), ({"coupled": "true"}, "two coupled epochs see every")])
def test_nothing_to_correct(
    pool: Path, tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str], more: dict[str, str], why: str
) -> None:
    """loss_beta where samples are drawn evenly, by themselves or over a pair of epochs: exit code 2 and the reason. Not with shares."""
    settings = {f"sampling__{name}": value for name, value in more.items()} | ({"sampling__weights": str(weights)} if more else {})
    assert run(pool, tmp_path / "run", **settings, sampling__loss_beta="1") == 2
    assert f"sampling.loss_beta=1: {why}" in capsys.readouterr().err
    shares = {"data__train": f"[{pool / 'train'}@2x, {pool / 'train'}]"}
    assert more or run(pool, tmp_path / "mixture", **shares, run__duration="1 steps", sampling__loss_beta="1") == 0, "of shares there is"
