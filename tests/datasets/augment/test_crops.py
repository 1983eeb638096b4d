"""Crops and resizes against torchvision's."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from bamboo.datasets.augment import crops
from bamboo.datasets.augment.crops import NUM_DRAWS, EvalView, Interpolation, TrainView, crop_box, resize
from bamboo.datasets.counters import key, uniforms

SIZES = [(33, 47), (64, 64), (7, 90), (1, 5), (200, 31)]
MODES = {"bilinear": functional.InterpolationMode.BILINEAR, "bicubic": functional.InterpolationMode.BICUBIC}
RATIO = (3 / 4, 4 / 3)


def picture(height: int, width: int) -> torch.Tensor:
    """Returns random uint8[3, H, W] with the decoder's channels-last strides."""
    pixels = np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return torch.from_numpy(pixels).permute(2, 0, 1)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_resize_is_torchvisions(height: int, width: int, interpolation: Interpolation) -> None:
    """Equal pixels, up and down, for odd and tiny sizes, and on a crop of a larger image."""
    for target in ((16, 24), (50, 50), (height, width)):
        for image in (picture(height, width), picture(height + 9, width + 7)[:, 4 : 4 + height, 3 : 3 + width]):
            expected = functional.resize(image, list(target), MODES[interpolation], antialias=True)
            assert torch.equal(resize(image, *target, interpolation), expected)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop_fraction", [1.0, 0.875])
def test_eval_view_is_torchvisions(interpolation: Interpolation, crop_fraction: float) -> None:
    """Resize of the short side and centre crop: equal pixels."""
    for height, width in SIZES[:3]:
        image = picture(height, width)
        resized = functional.resize(image, [int(32 / crop_fraction)], MODES[interpolation], antialias=True)
        expected = functional.center_crop(resized, [32, 32])
        assert torch.equal(EvalView(32, crop_fraction=crop_fraction, interpolation=interpolation)(image), expected)


def evaluated_by_torchvision(image: torch.Tensor, size: int, crop_fraction: float, interpolation: Interpolation) -> torch.Tensor:
    """Returns the whole image resized by its short side, then the centre crop."""
    resized = functional.resize(image, [max(int(size / crop_fraction), size)], MODES[interpolation], antialias=True)
    return functional.center_crop(resized, [size, size])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_eval_view_of_ordinary_images_is_torchvisions_to_the_bit(interpolation: Interpolation) -> None:
    """150 sizes, sides up to 90 in aspects up to 27, crops of 4 to 47 pixels of three fractions: equal pixels."""
    generator = np.random.default_rng(3)
    for number in range(150):
        size, crop_fraction, short = int(generator.integers(4, 48)), (1.0, 0.95, 0.875)[number % 3], int(generator.integers(1, 90))
        sides = (short, int(short * generator.uniform(1, 27)))
        image = picture(*(sides if number % 2 else sides[::-1]))
        expected = evaluated_by_torchvision(image, size, crop_fraction, interpolation)
        assert torch.equal(EvalView(size, crop_fraction=crop_fraction, interpolation=interpolation)(image), expected)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_eval_view_of_slivers_is_torchvisions_but_for_rounding(interpolation: Interpolation) -> None:
    """90 images of aspects 33 to 90 against the whole image resized: at most 2 grey levels off, one pixel in 1,000 over 1."""
    generator, over, pixels = np.random.default_rng(4), 0, 0
    for number in range(90):
        size, crop_fraction, short = int(generator.integers(4, 48)), (1.0, 0.95, 0.875)[number % 3], int(generator.integers(1, 90))
        sides = (short, int(short * generator.uniform(33, 90)) + 1)
        image = picture(*(sides if number % 2 else sides[::-1]))
        expected = evaluated_by_torchvision(image, size, crop_fraction, interpolation)
        actual = EvalView(size, crop_fraction=crop_fraction, interpolation=interpolation)(image)
        assert actual.shape == (3, size, size)
        difference = (actual.int() - expected.int()).abs()
        assert difference.max() <= 2
        over, pixels = over + int((difference > 1).sum()), pixels + difference.numel()
    assert over <= pixels / 1000


@pytest.mark.parametrize("tall", [True, False])
@pytest.mark.parametrize("length", [20_000, 65_500, 5_000_000])
def test_eval_view_of_a_line_computes_the_crop_alone(monkeypatch: pytest.MonkeyPatch, length: int, tall: bool) -> None:
    """One pixel wide, up to the pixels that may be decoded: no resize of it all, which took gigabytes; its middle, by torchvision."""
    image = picture(length, 1) if tall else picture(1, length)
    middle = slice(length // 2 - 8, length // 2 + 8)
    part = image[:, middle] if tall else image[:, :, middle]
    expected = evaluated_by_torchvision(part, 224, 0.95, "bicubic")

    def refused(*arguments: object) -> torch.Tensor:
        raise AssertionError(f"resized as a whole: {arguments[1:]}")

    monkeypatch.setattr(crops, "resize", refused)
    actual = EvalView(224, crop_fraction=0.95, interpolation="bicubic")(image)
    assert (actual.int() - expected.int()).abs().max() <= 2


def test_training_boxes_of_lines_stay_small() -> None:
    """Lines of 65,500 pixels and 20 × 200,000: every box keeps the ratio's bounds, so nothing long is resized."""
    for height, width in ((1, 65_500), (65_500, 1), (20, 200_000), (200_000, 20)):
        for draws in uniforms(key(9), np.arange(50), NUM_DRAWS).tolist():
            box = crop_box(height, width, (0.08, 1.0), RATIO, draws)[2:]
            assert max(box) <= min(box) * 4 / 3 + 1


def test_train_view_is_the_box_and_the_flip() -> None:
    """torchvision's resized_crop at our box, flipped where the last draw says so: equal pixels."""
    view = TrainView(24, scale=(0.2, 1.0), ratio=RATIO, flip=0.5, interpolation="bicubic")
    image = picture(60, 45)
    flips = 0
    for draws in uniforms(key(1), np.arange(40), NUM_DRAWS).tolist():
        top, left, height, width = crop_box(60, 45, (0.2, 1.0), RATIO, draws)
        expected = functional.resized_crop(image, top, left, height, width, [24, 24], MODES["bicubic"], antialias=True)
        flips += draws[-1] < 0.5
        assert torch.equal(view(image, draws), functional.horizontal_flip(expected) if draws[-1] < 0.5 else expected)
    assert 8 < flips < 32


@pytest.mark.parametrize(("height", "width"), [(375, 500), (64, 64), (30, 200)])
def test_crop_law_is_torchvisions(height: int, width: int) -> None:
    """4,000 boxes of each: means of top, left, height, width and their spread within 5 standard errors."""
    torch.manual_seed(0)
    theirs = v2.RandomResizedCrop(8, scale=(0.08, 1.0), ratio=RATIO, antialias=True)
    image = torch.zeros(3, height, width)
    expected = np.array([[theirs.make_params([image])[name] for name in ("top", "left", "height", "width")] for _ in range(4000)])
    draws = uniforms(key(5), np.arange(4000), NUM_DRAWS).tolist()
    actual = np.array([crop_box(height, width, (0.08, 1.0), RATIO, drawn) for drawn in draws])
    for moment in (1, 2):
        ours, others = (actual.astype(float) ** moment, expected.astype(float) ** moment)
        error = np.sqrt(ours.var(0) / 4000 + others.var(0) / 4000) + 1e-9
        assert np.all(np.abs(ours.mean(0) - others.mean(0)) < 5 * error)


def test_fallback_is_torchvisions() -> None:
    """Where no box fits (a sliver, area above what the ratio allows), the centred box of torchvision, exactly."""
    for height, width in ((10, 400), (400, 10), (1, 1)):
        theirs = v2.RandomResizedCrop(8, scale=(0.99, 1.0), ratio=RATIO, antialias=True)
        expected = theirs.make_params([torch.zeros(3, height, width)])
        actual = crop_box(height, width, (0.99, 1.0), RATIO, [0.5] * NUM_DRAWS)
        assert actual == tuple(expected[name] for name in ("top", "left", "height", "width"))


def test_boxes_stay_inside() -> None:
    """Extreme draws: every box lies in the image and is not empty."""
    for value in (0.0, 0.5, 1 - 2**-53):
        for height, width in SIZES:
            top, left, box_height, box_width = crop_box(height, width, (0.08, 1.0), RATIO, [value] * NUM_DRAWS)
            assert 0 <= top < top + box_height <= height
            assert 0 <= left < left + box_width <= width
