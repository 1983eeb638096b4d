"""The sheet of augmented views, from the command line and by itself."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bamboo.datasets.augment.crops import TrainView
from bamboo.datasets.augment.sheet import augmented_sheet
from bamboo.datasets.augment.views import RAND_AUGMENT
from bamboo.datasets.shard_settings import ShowSettings

Bamboo = Callable[..., tuple[int, str, str]]


def test_rows_hold_the_image_and_its_views() -> None:
    """Cut out of the sheet again: the image at its own shape, then views that differ; the same for the same seed alone."""
    image = torch.from_numpy(np.random.default_rng(1).integers(0, 255, (32, 64, 3), dtype=np.uint8)).permute(2, 0, 1)
    view = TrainView(32, scale=(0.1, 0.5), ratio=(1.0, 1.0), flip=0.5, interpolation="bilinear")
    sheet = np.asarray(augmented_sheet([image, image], view, 3, seed=0))
    assert sheet.shape == (2 * 36 + 4, 4 * 36 + 4, 3)
    cells = [sheet[4 + row * 36 : 36 + row * 36, 4 + column * 36 : 36 + column * 36] for row in range(2) for column in range(4)]
    assert [bool((cell == 255).all()) for cell in (cells[0][:8], cells[0][8:24], cells[0][24:])] == [True, False, True]
    assert np.array_equal(cells[0], cells[4])
    assert len({cell.tobytes() for cell in cells}) == 7
    assert np.array_equal(sheet, np.asarray(augmented_sheet([image, image], view, 3, seed=0)))
    assert not np.array_equal(sheet, np.asarray(augmented_sheet([image, image], view, 3, seed=1)))


def test_show_writes_it(packed: Path, tmp_path: Path, bamboo: Bamboo) -> None:
    """`bamboo shards show --views`: a PNG of the expected size, other pixels for each augmentation, and the images in the first column."""
    pixels = []
    for number, options in enumerate((["none"], ["rand", "--rand-augment", "rand-m9-n3-p1"], ["three"], ["none", "--erase", 1])):
        path = tmp_path / f"{number}.png"
        code, _, errors = bamboo("show", packed, "--contact-sheet", path, "--images", 3, "--views", 4, "--augment", *options)
        assert code == 0, errors
        pixels.append(np.asarray(Image.open(path)))
        assert pixels[-1].shape == (3 * 132 + 4, 5 * 132 + 4, 3)
        assert np.array_equal(pixels[-1][:, :132], pixels[0][:, :132])
    assert len({sheet.tobytes() for sheet in pixels}) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--augment", "rand"], "augment=rand: changes views; give views too"),
        (["--views", 3], "views=3: are shown on the contact sheet; give contact_sheet too"),
        (["--views", 3, "--contact-sheet", "x.png", "--columns", 4], "columns=4: with views=3"),
        (["--views", 3, "--contact-sheet", "x.png", "--rand-augment", "rand-m3"], "rand_augment=rand-m3: augment=none does not use it"),
        (
            ["--views", 3, "--contact-sheet", "x.png", "--augment", "rand", "--rand-augment", "rand-q3"],
            "--rand-augment=rand-q3: ",
        ),
    ],
)
def test_options_that_do_not_fit(options: list[object], message: str, packed: Path, bamboo: Bamboo) -> None:
    """Exit code 2 and the text of each mistake."""
    code, _, errors = bamboo("show", packed, *options)
    assert code == 2
    assert message in errors


def test_the_default_is_the_views_own(tmp_path: Path) -> None:
    """The default spelling, written out in the light settings module, against the one of the views."""
    assert ShowSettings(folder=str(tmp_path)).rand_augment == RAND_AUGMENT
