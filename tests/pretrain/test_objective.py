"""The objective against its dense, slow twin."""

import numpy as np
import pytest
import torch
from timm.loss import SoftTargetCrossEntropy

from bamboo.pretrain.config import ObjectiveSettings
from bamboo.pretrain.objective import Objective


def batch(num_images: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns images whose pixels tell their row, and labels."""
    images = torch.arange(num_images, dtype=torch.float32)[:, None, None, None].expand(-1, 3, 16, 16).clone()
    return images, torch.arange(num_images) % 5


@pytest.mark.parametrize("settings", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}, {}])
def test_sparse_pair_loss_equals_dense_soft_targets(settings: dict[str, float]) -> None:
    """Against timm's SoftTargetCrossEntropy on targets written out densely, label smoothing included, to 1e-5."""
    images, labels = batch()
    objective = Objective(ObjectiveSettings(label_smoothing=0.1, **settings), seed=3)
    logits = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    for step in range(6):
        _, targets = objective.mix(images, labels, step)
        dense = torch.nn.functional.one_hot(labels, 5).float() * targets.share
        if targets.partners is not None:
            dense += torch.nn.functional.one_hot(targets.partners, 5).float() * (1 - targets.share)
        expected = SoftTargetCrossEntropy()(logits, dense * 0.9 + 0.1 / 5) * 8
        assert float(objective.loss_sum(logits, targets)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("settings", [{"mixup": 0.8}, {"cutmix": 1.0}])
def test_share_is_what_the_pixels_hold(settings: dict[str, float]) -> None:
    """The label share equals the share of pixel mass that comes from the image itself, for every step and pair."""
    images, labels = batch()
    objective = Objective(ObjectiveSettings(**settings), seed=1)
    for step in range(20):
        mixed, targets = objective.mix(images, labels, step)
        assert targets.partners is not None
        own = torch.arange(8.0)
        partner = own.reshape(4, 2).flip(1).reshape(-1)
        assert torch.equal(targets.partners, labels.reshape(4, 2).flip(1).reshape(-1))
        expected = targets.share * own + (1 - targets.share) * partner
        assert mixed.mean(dim=(1, 2, 3)).numpy() == pytest.approx(expected.numpy(), abs=1e-4)


def test_mixing_does_not_depend_on_the_number_of_ranks() -> None:
    """The whole batch mixed at once against the same batch in pair-aligned slices: equal, bit for bit."""
    images, labels = batch(12)
    objective = Objective(ObjectiveSettings(mixup=0.5, cutmix=0.5), seed=2)
    for step in range(10):
        whole, _ = objective.mix(images, labels, step)
        parts = [objective.mix(images[rows], labels[rows], step)[0] for rows in (slice(0, 4), slice(4, 10), slice(10, 12))]
        assert torch.equal(whole, torch.cat(parts))


def test_mixing_law() -> None:
    """λ of mixup over 2,000 steps against Beta(0.8, 0.8): mean and variance within 4 standard errors."""
    images, labels = batch(2)
    objective = Objective(ObjectiveSettings(mixup=0.8), seed=5)
    shares = np.array([objective.mix(images, labels, step)[1].share for step in range(2000)])
    variance = 1 / (4 * (2 * 0.8 + 1))
    assert shares.mean() == pytest.approx(0.5, abs=4 * (variance / 2000) ** 0.5)
    assert shares.var() == pytest.approx(variance, rel=0.12)
