"""The training objective: cross-entropy or binary cross-entropy, over images that mixup or cutmix may have blended in pairs.

Letters: B batch of one rank, K classes, S image side.
"""

import dataclasses

import numpy as np
import torch
from torch.nn.functional import cross_entropy, softplus

from ..datasets.counters import key
from .settings.objective import ObjectiveSettings

_MIX = 4  # what the key is for; 1 to 3 are the data's


@dataclasses.dataclass(frozen=True)
class Targets:
    """Sparse targets: the class of each image, and of the partner it was blended with at weight 1 - `share`."""

    labels: torch.Tensor  # int64[B]
    partners: torch.Tensor | None = None  # int64[B]
    share: float = 1.0


class Objective:
    """Sum of losses over the images at hand; dividing by the global batch is the trainer's business."""

    def __init__(self, settings: ObjectiveSettings, seed: int) -> None:
        self._settings, self._seed = settings, seed
        self.unit = 2 if settings.mixup or settings.cutmix else 1
        """Images that must stay together on one rank and in one forward pass."""

    def mix(self, images: torch.Tensor, labels: torch.Tensor, step: int) -> tuple[torch.Tensor, Targets]:
        """Returns float32[B, 3, S, S] images and their targets; blends row 2i with row 2i + 1 where mixup or cutmix is on.

        Whether to mix, which of the two, λ ~ Beta(α, α) and cutmix's box are drawn once a step from (seed, step), so they are the same
        on any number of ranks. Sources: mixup, arXiv 1710.09412; cutmix, arXiv 1905.04899.
        """
        settings = self._settings
        mixup, cutmix = settings.mixup, settings.cutmix
        if not (mixup or cutmix):
            return images, Targets(labels)
        draw = np.random.Generator(np.random.Philox(key=[int(key(self._seed, _MIX)), step]))
        if settings.mix_prob < 1 and draw.random() >= settings.mix_prob:
            return images, Targets(labels)
        takes_box = bool(cutmix) and (not mixup or draw.random() < settings.switch_prob)
        alpha = cutmix if takes_box else mixup
        share = float(draw.beta(alpha, alpha))
        partner = torch.arange(len(labels), device=labels.device) ^ 1
        partner_images, partners = images[partner], labels[partner]
        if not takes_box:
            return images.lerp(partner_images, 1 - share), Targets(labels, partners, share)
        top, bottom, left, right = _box(images.shape[-1], 1 - share, draw)
        images = images.clone()
        images[:, :, top:bottom, left:right] = partner_images[:, :, top:bottom, left:right]
        return images, Targets(labels, partners, 1 - (bottom - top) * (right - left) / images.shape[-1] ** 2)

    def loss_sum(self, logits_BK: torch.Tensor, targets: Targets, weights_B: torch.Tensor | None = None) -> torch.Tensor:
        """Returns Σ over the batch of an image's loss, times its weight where there are weights, a float32 scalar.

        loss=cross_entropy: share · CE(label) + (1 - share) · CE(partner), each with label smoothing.
        loss=bce: the mean over classes of BCE(logit, target); targets are blended as the images are. Source: arXiv 2110.00476.
        A blended image has the weight of the row that it stands in.
        """
        if self._settings.loss == "bce":
            return self._binary(logits_BK, targets, weights_B)
        loss = self._cross_entropy(logits_BK, targets.labels, weights_B)
        if targets.partners is None:
            return loss
        return targets.share * loss + (1 - targets.share) * self._cross_entropy(logits_BK, targets.partners, weights_B)

    def _cross_entropy(self, logits_BK: torch.Tensor, labels_B: torch.Tensor, weights_B: torch.Tensor | None) -> torch.Tensor:
        smoothing = self._settings.label_smoothing
        if weights_B is None:
            return cross_entropy(logits_BK, labels_B, label_smoothing=smoothing, reduction="sum")
        return (weights_B * cross_entropy(logits_BK, labels_B, label_smoothing=smoothing, reduction="none")).sum()

    def _binary(self, logits_BK: torch.Tensor, targets: Targets, weights_B: torch.Tensor | None) -> torch.Tensor:
        """Returns Σ over the batch of the mean over classes k of softplus(z_k) - t_k · z_k.

        All targets but those of one or two classes are equal, so no row of targets is made: Σ_k t_k z_k = t_rest Σ_k z_k + what those
        classes have beyond t_rest.
        """
        num_classes = logits_BK.shape[1]
        rest = self._settings.label_smoothing / num_classes
        full = 1 - self._settings.label_smoothing + rest
        partners = targets.labels if targets.partners is None else targets.partners
        blended = [targets.share * full + (1 - targets.share) * rest, (1 - targets.share) * full + targets.share * rest]
        t_rest, t_full, t_label, t_partner = (self._target(value) for value in (rest, full, *blended))
        z_label, z_partner = (logits_BK.gather(1, classes[:, None]).squeeze(1) for classes in (targets.labels, partners))
        beyond = torch.where(
            targets.labels == partners,
            (t_full - t_rest) * z_label,
            (t_label - t_rest) * z_label + (t_partner - t_rest) * z_partner,
        )
        if weights_B is not None:
            return (weights_B * (softplus(logits_BK).sum(1) - t_rest * logits_BK.sum(1) - beyond)).sum() / num_classes
        return (softplus(logits_BK).sum() - t_rest * logits_BK.sum() - beyond.sum()) / num_classes

    def _target(self, value: float) -> float:
        threshold = self._settings.bce_threshold
        return value if threshold is None else float(value > threshold)


def _box(size: int, area: float, draw: np.random.Generator) -> tuple[int, int, int, int]:
    """Returns (top, bottom, left, right) of a box of about `area` of the image, centred anywhere, cut at the border."""
    half = int(size * np.sqrt(area)) // 2
    row, column = (int(value) for value in draw.integers(0, size, 2))
    return max(row - half, 0), min(row + half, size), max(column - half, 0), min(column + half, size)
