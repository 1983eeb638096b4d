"""Colour jitter, and DeiT III's 3-Augment (arXiv 2204.07118, section 3.2), on RGB pictures and from given draws.

The kernels are Pillow's, which torchvision's transforms and DeiT III's own code use on decoded pictures.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

_ORDERS = tuple(itertools.permutations(range(4)))
_ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


class ColourJitter:
    """Brightness, contrast and saturation by factors U(max(0, 1 - s), 1 + s), hue by a shift U(-h, h), in an order drawn too.

    The law is that of torchvision's `ColorJitter(s, s, s, h)`; what has no strength is left out, and takes its draw all the same.
    """

    num_draws = 5

    def __init__(self, strength: float, hue: float = 0.0) -> None:
        self._strength, self._hue = strength, hue

    def __call__(self, picture: Image.Image, draws: Sequence[float]) -> Image.Image:
        """Returns the jittered picture; `draws`: the order, then brightness, contrast, saturation, hue."""
        least = max(0.0, 1 - self._strength)
        for number in _ORDERS[int(draws[0] * len(_ORDERS))]:
            draw = draws[1 + number]
            if number < 3 and self._strength:
                picture = _ENHANCERS[number](picture).enhance(least + draw * (1 + self._strength - least))
            elif number == 3 and self._hue:
                picture = shift_hue(picture, (2 * draw - 1) * self._hue)
        return picture


class ThreeAugment:
    """One of greyscale, solarising at 128 and a Gaussian blur of radius U(0.1, 2), equally likely."""

    num_draws = 2

    def __call__(self, picture: Image.Image, draws: Sequence[float]) -> Image.Image:
        """Returns the changed picture; `draws`: which of the three, the radius."""
        which = int(draws[0] * 3)
        if which == 0:
            return picture.convert("L").convert("RGB")
        if which == 1:
            return ImageOps.solarize(picture, 128)
        return picture.filter(ImageFilter.GaussianBlur(0.1 + draws[1] * 1.9))


def shift_hue(picture: Image.Image, shift: float) -> Image.Image:
    """Returns the picture with its hue turned by `shift` of the circle, -0.5 … 0.5, in Pillow's 8-bit HSV."""
    hue, saturation, value = picture.convert("HSV").split()
    steps = int(shift * 255)
    turned = Image.fromarray(np.asarray(hue) + np.uint8(steps % 256))
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")
