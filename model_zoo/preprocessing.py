"""What a backbone wants done to an image before it sees it.

Letters: B batch, H W pixels.
"""

import dataclasses
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..datasets.atomic import sha256_json
from ..datasets.augment.crops import EvalView, Interpolation

RGB = tuple[float, float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Evaluation preprocessing: resize of the short side, centre crop, then (x / 255 - mean) / std per channel."""

    image_size: int
    mean: RGB = IMAGENET_DEFAULT_MEAN
    std: RGB = IMAGENET_DEFAULT_STD
    interpolation: Interpolation = "bicubic"
    crop_fraction: float = 0.875
    """Crop side over resized short side, in (0, 1]."""

    @property
    def digest(self) -> str:
        """Hex SHA-256 of all of it."""
        return sha256_json(dataclasses.asdict(self))

    @property
    def view(self) -> EvalView:
        """The resize and crop, for the loader's workers."""
        return EvalView(self.image_size, crop_fraction=self.crop_fraction, interpolation=self.interpolation)


def preprocessing_from(tree: dict[str, Any]) -> Preprocessing:
    """Returns the preprocessing that `dataclasses.asdict` wrote; raises TypeError or KeyError when it is not one."""
    return Preprocessing(**{**tree, "mean": tuple(tree["mean"]), "std": tuple(tree["std"])})


class Normalize(torch.nn.Module):
    """uint8[B, H, W, 3] → float32[B, 3, H, W] with channels-last strides, normalised on the device the images are on."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
        self.register_buffer("scale", (1 / (255 * std)).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", (-mean / std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the normalised images."""
        pixels = images.permute(0, 3, 1, 2).to(torch.float32)  # [B, H, W, 3] → [B, 3, H, W]: strides only
        scale, shift = self.get_buffer("scale"), self.get_buffer("shift")
        return pixels.mul_(scale).add_(shift)
