"""Colour jitter and 3-Augment against torchvision's ops and laws."""

import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from bamboo.datasets.augment.colour import ColourJitter, ThreeAugment, shift_hue
from bamboo.datasets.counters import key, uniforms


def picture(height: int = 40, width: int = 52) -> Image.Image:
    """Returns a smooth RGB picture."""
    coarse = np.random.default_rng(4).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(("strength", "hue"), [(0.3, 0.0), (1.0, 0.0), (0.4, 0.1), (0.0, 0.5)])
def test_jitter_is_torchvisions(strength: float, hue: float) -> None:
    """torchvision's ColorJitter given our order and factors: equal pixels for 40 rows of draws."""
    reference = v2.ColorJitter(strength, strength, strength, hue)
    ours = ColourJitter(strength, hue)
    orders = list(itertools.permutations(range(4)))
    for row in uniforms(key(2), np.arange(40), ours.num_draws).tolist():
        low, high = max(0.0, 1 - strength), 1 + strength
        factors = [low + draw * (high - low) for draw in row[1:4]] if strength else [None] * 3
        names = ("brightness_factor", "contrast_factor", "saturation_factor")
        params = dict(zip(names, factors, strict=True), hue_factor=(2 * row[4] - 1) * hue if hue else None)
        expected = reference.transform(picture(), {"fn_idx": torch.tensor(orders[int(row[0] * 24)]), **params})
        assert ours(picture(), row).tobytes() == expected.tobytes()


def test_jitter_law_is_torchvisions() -> None:
    """2,000 brightness factors of each, read off a grey picture: mean and spread within 5 standard errors."""
    torch.manual_seed(0)
    reference = v2.ColorJitter(0.3)
    theirs = np.array([reference.make_params([])["brightness_factor"] for _ in range(2000)])
    grey = Image.new("RGB", (1, 1), (100, 100, 100))
    rows = uniforms(key(6), np.arange(2000), 5).tolist()
    ours = np.array([np.asarray(ColourJitter(0.3)(grey, [*row[:2], 0.5, 0.5, 0.5]))[0, 0, 0] for row in rows]) / 100
    assert ours.mean() == pytest.approx(theirs.mean(), abs=5 * math.sqrt(0.03 / 1000) + 0.01)
    assert ours.std() == pytest.approx(theirs.std(), rel=0.05)


def test_hue_is_torchvisions() -> None:
    """Both directions, the ends and nothing: equal pixels."""
    for shift in (-0.5, -0.13, 0.0, 0.001, 0.2, 0.5):
        assert shift_hue(picture(), shift).tobytes() == functional.adjust_hue(picture(), shift).tobytes()


def test_three_augment_is_one_of_three() -> None:
    """Greyscale and solarising equal torchvision's, pixel by pixel; each of the three falls on its third of the draws."""
    three = ThreeAugment()
    for draw in (0.0, 0.33):
        assert three(picture(), [draw, 0.5]).tobytes() == functional.rgb_to_grayscale(picture(), 3).tobytes()
    for draw in (0.34, 0.66):
        assert three(picture(), [draw, 0.5]).tobytes() == functional.solarize(picture(), 128).tobytes()
    blurred = three(picture(), [0.67, 0.5])
    assert blurred.tobytes() == three(picture(), [1 - 2**-53, 0.5]).tobytes()
    assert ImageChops.difference(blurred, picture()).getbbox() is not None


def test_blur_is_gaussian() -> None:
    """An edge and a dot, away from the border, against a true Gaussian of the same radius, which changes them by 86 to 245 grey levels:
    within 9 (at the smallest radius) and half a level on average. Pillow's blur is made of box filters.
    """
    pixels = np.zeros((65, 65, 3), np.uint8)
    pixels[:, 40:] = 255
    pixels[32, 20] = 255
    for draw in (0.2, 0.6, 1 - 2**-53):
        radius = 0.1 + 1.9 * draw
        actual = np.asarray(ThreeAugment()(Image.fromarray(pixels), [0.9, draw])).astype(float)
        taps = np.exp(-0.5 * (np.arange(-12, 13) / radius) ** 2)
        blurred = pixels.astype(float)
        for axis in (0, 1):
            blurred = np.apply_along_axis(np.convolve, axis, blurred, taps / taps.sum(), "same")
        inner = np.s_[14:-14, 14:-14]
        assert np.abs(actual[inner] - blurred[inner]).max() < 9
        assert np.abs(actual[inner] - blurred[inner]).mean() < 0.5
