"""Random erasing (arXiv 1708.04896) on uint8 pixels, from given draws.

Letters: S image side.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

EraseMode = Literal["mean", "pixel"]

_ATTEMPTS = 10
_PER_BOX = 2 * _ATTEMPTS + 2  # (area, aspect) per attempt, two for the place
_LEVELS = 1 << 16


class RandomErasing:
    """With a given probability, overwrites one box, or up to `count`, with the mean colour or with noise.

    A box's area is U(area) of the image, divided by the number of boxes; its aspect exp(U(log aspect)); the first of ten attempts that
    is smaller than the image is placed uniformly, and if none is, there is no box: timm's law. Noise is such that a pixel, normalised
    by (mean, std), is N(0, 1) rounded to the 256 levels and cut at black and white.
    """

    def __init__(
        self,
        probability: float,
        *,
        mode: EraseMode,
        area: tuple[float, float],
        aspect: tuple[float, float],
        count: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> None:
        self._probability, self._area, self._aspect, self._count = probability, area, aspect, count
        self._fill = torch.tensor(mean_colour(mean), dtype=torch.uint8)[:, None, None]
        self._noise = [normal_levels(*channel) for channel in zip(mean, std, strict=True)] if mode == "pixel" else None
        self.num_draws = 3 + _PER_BOX * count

    def boxes(self, height: int, width: int, draws: Sequence[float]) -> list[tuple[int, int, int, int]]:
        """Returns (top, left, height, width) of each box; `draws`: whether, how many, one for the noise, then 22 per box."""
        if draws[0] >= self._probability:
            return []
        count = 1 + int(draws[1] * self._count)
        starts = range(3, 3 + _PER_BOX * count, _PER_BOX)
        found = (self._box(height, width, count, draws[start : start + _PER_BOX]) for start in starts)
        return [box for box in found if box is not None]

    def _box(self, height: int, width: int, count: int, draws: Sequence[float]) -> tuple[int, int, int, int] | None:
        low, high = math.log(self._aspect[0]), math.log(self._aspect[1])
        for attempt in range(_ATTEMPTS):
            area = (self._area[0] + draws[2 * attempt] * (self._area[1] - self._area[0])) * height * width / count
            aspect = math.exp(low + draws[2 * attempt + 1] * (high - low))
            box_height, box_width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if box_height < height and box_width < width:
                top, left = int(draws[-2] * (height - box_height + 1)), int(draws[-1] * (width - box_width + 1))
                return top, left, box_height, box_width
        return None

    def __call__(self, image: torch.Tensor, draws: Sequence[float]) -> torch.Tensor:
        """Returns uint8[3, S, S], the image itself where nothing is erased; the image given is never written to."""
        boxes = self.boxes(image.shape[1], image.shape[2], draws)
        if not boxes:
            return image
        image = image.clone()
        bits = np.random.Philox(key=int(draws[2] * 2.0**53))
        for top, left, height, width in boxes:
            part = image[:, top : top + height, left : left + width]
            part.copy_(self._fill if self._noise is None else _noise(self._noise, height, width, bits))
        return image


def mean_colour(mean: tuple[float, float, float]) -> tuple[int, int, int]:
    """Returns the uint8 colour nearest to channel means of pixels in [0, 1]."""
    red, green, blue = (min(max(round(255 * value), 0), 255) for value in mean)
    return red, green, blue


def normal_levels(mean: float, std: float) -> npt.NDArray[np.uint8]:
    """Returns uint8[65536], sorted: at a uniform index, the pixel v for which (v / 255 - mean) / std is nearest to a draw of N(0, 1).

    v has the probability Φ(z(v + ½)) - Φ(z(v - ½)), z(v) = (v / 255 - mean) / std, to 2⁻¹⁷, and black and white what lies beyond them.
    """
    normal = NormalDist(255 * mean, 255 * std)
    ends = [round(_LEVELS * normal.cdf(value + 0.5)) for value in range(255)]
    return np.repeat(np.arange(256, dtype=np.uint8), np.diff([0, *ends, _LEVELS]))


def _noise(levels: list[npt.NDArray[np.uint8]], height: int, width: int, bits: np.random.Philox) -> torch.Tensor:
    """Returns uint8[3, height, width]; takes 16 bits per value, so it depends on the key alone and not on numpy's samplers."""
    words = np.asarray(bits.random_raw(-(-3 * height * width // 4)), dtype="<u8")
    indices = words.view("<u2")[: 3 * height * width].reshape(3, height, width)
    return torch.from_numpy(np.stack([channel[index] for channel, index in zip(levels, indices, strict=True)]))
