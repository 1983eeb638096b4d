"""The training view: crop and flip, then what was asked for of RandAugment or 3-Augment, colour jitter and random erasing.

Every part is a pure function of the image and its draws, and none uses threads or a generator of its own, so a view is bit-equal in any
process. What is off takes no draws and no time.
"""

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import torch
from PIL import Image

from .colour import ColourJitter, ThreeAugment
from .crops import Interpolation, View
from .erasing import EraseMode, RandomErasing, mean_colour
from .rand_augment import RandAugment, parse_policy

Augment = Literal["none", "rand", "three"]

RAND_AUGMENT = "rand-m9-n2-mstd0.5-inc1"
THREE_JITTER = 0.3  # DeiT III's


class Retouch(Protocol):
    """Changes an RGB picture, by draws in [0, 1), keeping its size."""

    num_draws: int

    def __call__(self, picture: Image.Image, draws: Sequence[float]) -> Image.Image:
        """Returns the changed picture."""


class AugmentedView:
    """A crop, then retouches of the crop, then random erasing; the draws are theirs, one after another."""

    def __init__(self, crop: View, retouches: Sequence[Retouch] = (), erasing: RandomErasing | None = None) -> None:
        self.size, self._crop, self._retouches, self._erasing = crop.size, crop, retouches, erasing
        self.num_draws = crop.num_draws + sum(part.num_draws for part in retouches) + (erasing.num_draws if erasing else 0)

    def __call__(self, image: torch.Tensor, draws: Sequence[float]) -> torch.Tensor:
        """Returns uint8[3, S, S] with channels-last strides; `draws` are `num_draws` uniforms."""
        used = self._crop.num_draws
        view = self._crop(image, draws[:used])
        if self._retouches:
            picture = Image.fromarray(view.permute(1, 2, 0).numpy())
            for part in self._retouches:
                picture = part(picture, draws[used : used + part.num_draws])
                used += part.num_draws
            view = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        return self._erasing(view, draws[used:]) if self._erasing else view


def training_view(
    crop: View,
    *,
    interpolation: Interpolation,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    augment: Augment = "none",
    rand_augment: str = RAND_AUGMENT,
    color_jitter: float | None = None,
    hue_jitter: float = 0.0,
    erase: float = 0.0,
    erase_mode: EraseMode = "pixel",
    erase_area: tuple[float, float] = (0.02, 1 / 3),
    erase_aspect: tuple[float, float] = (0.3, 1 / 0.3),
    erase_count: int = 1,
) -> View:
    """Returns the view that the settings of the same names ask for; `crop` itself where all is off.

    Raises:
        ValueError: for a `rand_augment` that cannot be read.
    """
    retouches: list[Retouch] = []
    if augment == "rand":
        retouches.append(RandAugment(parse_policy(rand_augment), interpolation=interpolation, fill=mean_colour(mean)))
    elif augment == "three":
        retouches.append(ThreeAugment())
    if color_jitter is None:
        color_jitter = THREE_JITTER if augment == "three" else 0.0
    if color_jitter or hue_jitter:
        retouches.append(ColourJitter(color_jitter, hue_jitter))
    erasing = None
    if erase:
        erasing = RandomErasing(erase, mode=erase_mode, area=erase_area, aspect=erase_aspect, count=erase_count, mean=mean, std=std)
    return AugmentedView(crop, retouches, erasing) if retouches or erasing else crop
