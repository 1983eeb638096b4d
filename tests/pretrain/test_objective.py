"""The objective against its dense, slow twin."""

import numpy as np
import pytest
import torch
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy
from torchvision.transforms import v2

from bamboo.pretrain.objective import Objective, _box
from bamboo.pretrain.settings.pretrain import ObjectiveSettings


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


@pytest.mark.parametrize("settings", [{"mixup": 0.8}, {"cutmix": 1.0}])
def test_mixing_is_torchvisions(settings: dict[str, float]) -> None:
    """torchvision's MixUp and CutMix given our λ and the box that our pixels show, pair by pair: equal images and soft labels.

    torchvision blends each image with the one before it, which in a batch of two is its partner.
    """
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.rand(6, 3, 16, 16, generator=generator), torch.tensor([0, 1, 2, 2, 4, 3])
    objective = Objective(ObjectiveSettings(**settings), seed=4)
    reference = v2.MixUp(alpha=1.0, num_classes=5) if "mixup" in settings else v2.CutMix(alpha=1.0, num_classes=5)
    for step in range(12):
        mixed, targets = objective.mix(images, labels, step)
        assert targets.partners is not None
        moved = (mixed != images).any(0).any(0)
        rows, columns = (torch.nonzero(moved.any(axis)).flatten().tolist() or [-1] for axis in (1, 0))
        params = {
            "lam": targets.share,
            "lam_adjusted": targets.share,
            "box": (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) if bool(moved.any()) else (0, 0, 0, 0),
            "batch_size": 2,
        }
        for pair in (slice(0, 2), slice(2, 4), slice(4, 6)):
            expected = reference.transform(images[pair], {**params, "labels": labels[pair]})
            assert torch.allclose(mixed[pair], expected, atol=1e-6)
            chosen = labels[pair]
            soft = reference.transform(chosen, {**params, "labels": chosen})
            ours = torch.nn.functional.one_hot(targets.labels[pair], 5) * targets.share
            ours = ours + torch.nn.functional.one_hot(targets.partners[pair], 5) * (1 - targets.share)
            assert torch.allclose(ours, soft, atol=1e-6)


def test_box_is_torchvisions(monkeypatch: pytest.MonkeyPatch) -> None:
    """CutMix's own parameters for the λ and the centre that our box came from: the same box and corrected λ, on even and odd sides."""
    reference = v2.CutMix(alpha=1.0, num_classes=5)
    for size in (16, 33):
        for step in range(60):
            draw = np.random.default_rng(step)
            share = float(draw.beta(1, 1))
            top, bottom, left, right = _box(size, 1 - share, draw)
            again = np.random.default_rng(step)
            again.beta(1, 1)
            row, column = again.integers(0, size, 2).tolist()
            centre = iter([torch.tensor([column]), torch.tensor([row])])
            monkeypatch.setattr(reference._dist, "sample", lambda _, share=share: torch.tensor(share, dtype=torch.float64))
            with monkeypatch.context() as patch:
                patch.setattr(torch, "randint", lambda *_, centre=centre, **__: next(centre))
                params = reference.make_params([torch.zeros(2, 3, size, size)])
            assert params["box"] == (left, top, right, bottom)
            assert params["lam_adjusted"] == pytest.approx(1 - (bottom - top) * (right - left) / size**2)


def test_probabilities_are_timms() -> None:
    """Over 1,500 steps: a share mix_prob of them mixes, and of those a share switch_prob pastes boxes; within 4 standard errors."""
    images, labels = batch(2)
    objective = Objective(ObjectiveSettings(mixup=0.8, cutmix=1.0, mix_prob=0.6, switch_prob=0.3), seed=6)
    made = [objective.mix(images, labels, step) for step in range(1500)]
    mixed = [result for result, targets in made if targets.partners is not None]
    boxes = sum(bool(torch.isin(result, torch.tensor([0.0, 1.0])).all()) for result in mixed)
    assert len(mixed) / 1500 == pytest.approx(0.6, abs=4 * (0.24 / 1500) ** 0.5)
    assert boxes / len(mixed) == pytest.approx(0.3, abs=4 * (0.21 / len(mixed)) ** 0.5)
    for result, targets in made:
        if targets.partners is None:
            assert result is images
            assert targets.share == 1


def test_certain_mixing_draws_as_before() -> None:
    """mix_prob=1 and switch_prob=0.5 take no further draws: λ of the first steps as they have always been."""
    images, labels = batch(2)
    objective = Objective(ObjectiveSettings(mixup=0.8, cutmix=1.0), seed=7)
    shares = [round(objective.mix(images, labels, step)[1].share, 6) for step in range(4)]
    assert shares == [0.37105, 0.183941, 0.4375, 0.616785]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"mix_prob": 0.5}, "mix_prob=0.5: nothing is mixed"),
        ({"switch_prob": 0.2, "mixup": 0.8}, "switch_prob=0.2: chooses between mixup and cutmix"),
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, float], problem: str) -> None:
    """A probability that nothing uses, against the text of its error; together with what uses it there is none."""
    assert [line for line in ObjectiveSettings(**settings).problems() if line.startswith(problem)]
    assert ObjectiveSettings(mixup=0.8, cutmix=1.0, mix_prob=0.5, switch_prob=0.2).problems() == []


@pytest.mark.parametrize("mixed", [{"mixup": 0.8}, {"cutmix": 1.0}, {}])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("threshold", [None, 0.0, 0.2])
def test_binary_loss_equals_timms(mixed: dict[str, float], smoothing: float, threshold: float | None) -> None:
    """Against timm's BinaryCrossEntropy on targets written out densely as timm's mixup does, loss to 1e-6 and gradient to 1e-7."""
    settings = ObjectiveSettings(loss="bce", bce_threshold=threshold, label_smoothing=smoothing, **mixed)
    objective = Objective(settings, seed=3)
    images, labels = batch()
    labels[1] = labels[0]  # a pair of one class
    for step in range(6):
        _, targets = objective.mix(images, labels, step)
        logits = (8 * torch.randn(8, 5, generator=torch.Generator().manual_seed(step))).requires_grad_()
        on, off = 1 - smoothing + smoothing / 5, smoothing / 5
        partners = labels if targets.partners is None else targets.partners
        own, others = (torch.full((8, 5), off).scatter_(1, classes[:, None], on) for classes in (labels, partners))
        dense = own * targets.share + others * (1 - targets.share)
        expected = BinaryCrossEntropy(target_threshold=threshold)(logits, dense) * 8
        (gradient,) = torch.autograd.grad(expected, logits)
        ours = objective.loss_sum(logits, targets)
        assert ours.item() == pytest.approx(expected.item(), rel=1e-6)
        assert torch.allclose(torch.autograd.grad(ours, logits)[0], gradient, atol=1e-7)
