"""Crops and resizes on uint8 pixels, in the decoder's own layout (channels-last strides), with antialiasing.

Letters: H W source, S output side.
"""

import math
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import torch
from PIL import Image

Interpolation = Literal["bilinear", "bicubic"]

NUM_DRAWS = 23  # uniforms a training view takes: (area, ratio) per attempt, two for the place, one for the flip
_ATTEMPTS = 10
_WHOLE_SIDES = 32  # crop sides up to which an image is resized as a whole before the centre crop
_PILLOWS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_SUPPORT = 2  # pixels that the wider filter, bicubic, reaches to each side


class View(Protocol):
    """What turns a decoded image into a fixed-size one: uint8[3, H, W] and its draws in [0, 1) → uint8[3, S, S]."""

    size: int
    num_draws: int

    def __call__(self, image: torch.Tensor, draws: Sequence[float]) -> torch.Tensor:
        """Returns the view of one image."""


class TrainView:
    """Random-resized crop and horizontal flip (the parameters' law is torchvision's `RandomResizedCrop`)."""

    num_draws = NUM_DRAWS

    def __init__(
        self, size: int, *, scale: tuple[float, float], ratio: tuple[float, float], flip: float, interpolation: Interpolation
    ) -> None:
        self.size, self.scale, self.ratio, self.flip, self.interpolation = size, scale, ratio, flip, interpolation

    def __call__(self, image: torch.Tensor, draws: Sequence[float]) -> torch.Tensor:
        """Returns uint8[3, S, S]; `draws` are `NUM_DRAWS` uniforms."""
        top, left, height, width = crop_box(image.shape[1], image.shape[2], self.scale, self.ratio, draws)
        view = resize(image[:, top : top + height, left : left + width], self.size, self.size, self.interpolation)
        return view.flip(2) if draws[-1] < self.flip else view


class EvalView:
    """Resize of the short side to size / crop_fraction, then the centre crop (torchvision's `Resize` and `CenterCrop`).

    Of an image whose long side would become more than 32 crops long, only the crop is computed, so that memory stays bounded whatever
    the aspect; rounding may then differ, by a grey level, rarely by two.
    """

    num_draws = 0

    def __init__(self, size: int, *, crop_fraction: float, interpolation: Interpolation) -> None:
        self.size, self.crop_fraction, self.interpolation = size, crop_fraction, interpolation

    def __call__(self, image: torch.Tensor, draws: Sequence[float] = ()) -> torch.Tensor:
        """Returns uint8[3, S, S]; takes no draws."""
        short = max(math.floor(self.size / self.crop_fraction), self.size)
        height, width = fit_short_side(image.shape[1], image.shape[2], short)
        top, left = round((height - self.size) / 2), round((width - self.size) / 2)
        if max(height, width) > _WHOLE_SIDES * self.size:
            return _part_of_resized(image, (height, width), (top, left), self.size, self.interpolation)
        resized = resize(image, height, width, self.interpolation)
        return resized[:, top : top + self.size, left : left + self.size]


def fit_short_side(height: int, width: int, short: int) -> tuple[int, int]:
    """Returns (height, width) scaled so that the shorter is `short`; the longer is truncated, as torchvision truncates it."""
    if height <= width:
        return short, int(short * width / height)
    return int(short * height / width), short


def crop_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], draws: Sequence[float]
) -> tuple[int, int, int, int]:
    """Returns (top, left, height, width) of a random-resized crop.

    Up to ten attempts: area = HW · U(scale), aspect = exp(U(log ratio)); the first box that fits is placed uniformly. If none fits,
    the largest centred box within the ratio's bounds. `draws`: two per attempt, then two for the place.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for attempt in range(_ATTEMPTS):
        area = height * width * (scale[0] + draws[2 * attempt] * (scale[1] - scale[0]))
        aspect = math.exp(low + draws[2 * attempt + 1] * (high - low))
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(draws[2 * _ATTEMPTS] * (height - box_height + 1))
            left = int(draws[2 * _ATTEMPTS + 1] * (width - box_width + 1))
            return top, left, box_height, box_width
    aspect = min(max(width / height, ratio[0]), ratio[1])
    box_width, box_height = min(width, max(round(height * aspect), 1)), min(height, max(round(width / aspect), 1))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def resize(image: torch.Tensor, height: int, width: int, interpolation: Interpolation) -> torch.Tensor:
    """Returns uint8[3, height, width] by antialiased interpolation; the image itself where the size is right already."""
    if image.shape[1:] == (height, width):
        return image
    # A batch of one made of [3, H, W] has a batch stride that torch takes for NCHW, and re-packs every channel (pytorch#68430).
    batch = image.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(batch, (height, width), mode=interpolation, antialias=True, align_corners=False)
    return resized[0]


def _part_of_resized(
    image: torch.Tensor, resized: tuple[int, int], start: tuple[int, int], side: int, interpolation: Interpolation
) -> torch.Tensor:
    """Returns uint8[3, side, side]: what the image resized to `resized` has from `start` on, by Pillow, which takes fractional boxes.

    The filters are torch's, and the width goes before the height as there, so pixels are equal but for rounding after each of the two.
    Of the image only what the filter reaches is read.
    """
    windows, spans = list[slice](), list[tuple[float, float]]()
    for length, new_length, first in zip(image.shape[1:], resized, start, strict=True):
        scale = length / new_length
        low, high = first * scale, min((first + side) * scale, length)
        reach = _SUPPORT * max(scale, 1.0)
        begin = max(math.floor(low - reach), 0)
        windows.append(slice(begin, math.ceil(high + reach)))
        spans.append((low - begin, high - begin))
    picture = Image.fromarray(image[:, windows[0], windows[1]].permute(1, 2, 0).numpy())
    (top, bottom), (left, right) = spans
    narrowed = picture.resize((side, picture.height), _PILLOWS[interpolation], box=(left, 0, right, picture.height))
    view = narrowed.resize((side, side), _PILLOWS[interpolation], box=(0, top, side, bottom))
    return torch.from_numpy(np.array(view)).permute(2, 0, 1)
