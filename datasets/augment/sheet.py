"""A sheet of augmented views, to look at before a run spends a week on them."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from ..counters import key, uniforms
from .crops import View

_GAP = 4  # pixels
_STREAM = 0x56494557  # "VIEW": keeps this use of the seed apart from any other


def augmented_sheet(images: Sequence[torch.Tensor], view: View, num_views: int, seed: int) -> Image.Image:
    """Returns a row per image, uint8[3, H, W]: the image itself, scaled to fit, then `num_views` of its views, as if of as many epochs."""
    cell = view.size + _GAP
    sheet = Image.new("RGB", ((1 + num_views) * cell + _GAP, len(images) * cell + _GAP), "white")
    for row, image in enumerate(images):
        drawn = uniforms(key(_STREAM, seed, row), np.arange(num_views), view.num_draws).tolist()
        tiles = [_fitted(image, view.size), *(_picture(view(image, draws)) for draws in drawn)]
        for column, tile in enumerate(tiles):
            sheet.paste(tile, (_GAP + column * cell + (view.size - tile.width) // 2, _GAP + row * cell + (view.size - tile.height) // 2))
    return sheet


def _picture(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))


def _fitted(image: torch.Tensor, size: int) -> Image.Image:
    picture = _picture(image)
    scale = size / max(picture.size)
    return picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), Image.Resampling.BICUBIC)
