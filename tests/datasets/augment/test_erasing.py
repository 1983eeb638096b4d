"""Random erasing: its law against timm's, its pixels against what the draws say."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from timm.data.random_erasing import RandomErasing as TimmErasing

from bamboo.datasets.augment.erasing import RandomErasing, mean_colour, normal_levels
from bamboo.datasets.counters import key, uniforms

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AREA, ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)


def erasing(probability: float = 1.0, **changes: Any) -> RandomErasing:
    """Returns timm's default erasing of the mean colour, but for `changes`."""
    settings = {"mode": "mean", "area": AREA, "aspect": ASPECT, "count": 1, "mean": MEAN, "std": STD, **changes}
    return RandomErasing(probability, **settings)


def image(height: int = 48, width: int = 48) -> torch.Tensor:
    """Returns uint8[3, H, W], all white, with channels-last strides."""
    return torch.full((height, width, 3), 255, dtype=torch.uint8).permute(2, 0, 1)


def moments(masks: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """Returns float[N, 5]: erased area, and the height, width, top and left of what is erased, as shares; 0 where nothing is."""
    rows = []
    for mask in masks:
        lines, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(lines):
            rows.append([0.0] * 5)
            continue
        spans = [lines[-1] - lines[0] + 1, columns[-1] - columns[0] + 1, lines[0], columns[0]]
        rows.append([mask.mean(), *(span / len(mask) for span in spans)])
    return np.array(rows)


@pytest.mark.parametrize(("probability", "count"), [(1.0, 1), (0.25, 1), (1.0, 3)])
def test_law_is_timms(probability: float, count: int) -> None:
    """3,000 erased images of each: area, height, width and place, their means and spreads within 5 standard errors."""
    import random

    random.seed(5)
    theirs = TimmErasing(probability, mode="const", max_count=count, device="cpu")
    expected = moments([(theirs(torch.ones(1, 32, 32)) == 0)[0].numpy() for _ in range(3000)])
    ours = erasing(probability, count=count)
    rows = uniforms(key(11), np.arange(3000), ours.num_draws).tolist()
    actual = moments([(ours(image(32, 32), row) != 255)[0].numpy() for row in rows])
    for power in (1, 2):
        one, other = actual**power, expected**power
        error = np.sqrt(one.var(0) / 3000 + other.var(0) / 3000)
        assert np.all(np.abs(one.mean(0) - other.mean(0)) < 5 * error), (power, one.mean(0), other.mean(0))


def test_boxes_hold_what_was_asked_for() -> None:
    """Area and aspect of 2,000 boxes against the settings, to the rounding of their sides; all lie inside and have one box an image."""
    ours = erasing(area=(0.1, 0.2), aspect=(0.5, 2.0))
    found = [ours.boxes(224, 224, row) for row in uniforms(key(1), np.arange(2000), ours.num_draws).tolist()]
    assert {len(boxes) for boxes in found} == {1}
    top, left, height, width = np.array([boxes[0] for boxes in found]).T
    assert np.all((top >= 0) & (left >= 0) & (top + height <= 224) & (left + width <= 224))
    area, aspect = height * width / 224**2, height / width
    assert 0.0975 < area.min() < 0.105 < 0.195 < area.max() < 0.2025
    assert area.mean() == pytest.approx(0.15, abs=5 * 0.1 / math.sqrt(12 * 2000))
    assert 0.49 < aspect.min() < 0.52 < 1.92 < aspect.max() < 2.04
    assert np.log(aspect).mean() == pytest.approx(0, abs=5 * 2 * math.log(2) / math.sqrt(12 * 2000))


def test_only_the_boxes_change() -> None:
    """Pixels outside the boxes are as they were, inside they are the mean colour; the given image and its strides stay."""
    ours = erasing(count=2)
    for row in uniforms(key(2), np.arange(30), ours.num_draws).tolist():
        given = image()
        expected = np.full((48, 48, 3), 255, np.uint8)
        for top, left, height, width in ours.boxes(48, 48, row):
            expected[top : top + height, left : left + width] = (124, 116, 104)
        actual = ours(given, row)
        assert np.array_equal(actual.permute(1, 2, 0).numpy(), expected)
        assert torch.equal(given, image())
        assert actual.stride() == given.stride()


def test_nothing_is_copied_without_a_box() -> None:
    """Off by its draw, or where no box fits: the very same tensor."""
    given = image()
    assert erasing(0.3)(given, [0.3, *[0.5] * 24]) is given
    assert erasing(0.3)(given, [0.2, *[0.5] * 24]) is not given
    assert erasing(area=(1.0, 1.0))(given, [0.5] * 25) is given


def test_noise_is_normal_once_normalised() -> None:
    """Some 450,000 noise values per channel: shares of all 256 levels against the normal law, mean and spread of the normalised ones."""
    ours = erasing(mode="pixel", area=(0.9, 0.9), aspect=(1.0, 1.0))
    rows = uniforms(key(3), np.arange(10), ours.num_draws).tolist()
    for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        values = []
        for row in rows:
            ((top, left, height, width),) = ours.boxes(224, 224, row)
            values.append(ours(image(224, 224), row)[channel, top : top + height, left : left + width].numpy().ravel())
        pixels = np.concatenate(values)
        ends = [0.5 * (1 + math.erf(((value + 0.5) / 255 - mean) / std / math.sqrt(2))) for value in range(255)]
        expected = np.diff([0, *ends, 1]) * len(pixels)
        observed = np.bincount(pixels, minlength=256)
        assert ((observed - expected) ** 2 / expected).sum() < 255 + 5 * math.sqrt(2 * 255)
        normalised = (pixels / 255 - mean) / std
        assert normalised.mean() == pytest.approx(0, abs=0.03)
        assert normalised.std() == pytest.approx(1, abs=0.05)


def test_noise_is_the_draws_alone() -> None:
    """The same draws give the same noise; another noise draw, channel or pixel gives other noise."""
    ours = erasing(mode="pixel", area=(0.3, 0.3), aspect=(1.0, 1.0))
    row = [0.1, 0.5, 0.25] + [0.5] * 22
    other = [0.1, 0.5, 0.2500001] + [0.5] * 22
    first, ((top, left, height, width),) = ours(image(), row), ours.boxes(48, 48, row)
    np.random.default_rng(0).random(7)
    assert torch.equal(first, ours(image(), row))
    part, others = (view[:, top : top + height, left : left + width].float() for view in (first, ours(image(), other)))
    assert abs(float(np.corrcoef(part.numpy().ravel(), others.numpy().ravel())[0, 1])) < 0.1
    assert np.abs(np.corrcoef(part.reshape(3, -1).numpy())[np.triu_indices(3, 1)]).max() < 0.15
    assert abs(float(np.corrcoef(part[0, :, 1:].numpy().ravel(), part[0, :, :-1].numpy().ravel())[0, 1])) < 0.15


def test_levels_of_a_narrow_and_an_outlying_normal() -> None:
    """A standard deviation far below a level gives one level; a mean far outside gives black or white."""
    assert set(normal_levels(100 / 255, 1e-4).tolist()) == {100}
    assert set(normal_levels(-5.0, 0.1).tolist()) == {0}
    assert set(normal_levels(5.0, 0.1).tolist()) == {255}
    assert mean_colour((-0.1, 0.5, 1.2)) == (0, 128, 255)
