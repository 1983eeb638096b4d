"""Small real images on disk, made here with Pillow, for every test of the shards."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bamboo.cli.main import main

ImageBytes = Callable[..., bytes]
Bamboo = Callable[..., tuple[int, str, str]]


def make_image(seed: int = 0, size: tuple[int, int] = (12, 10), form: str = "JPEG", mode: str = "RGB", **options: object) -> bytes:
    """Returns an encoded image of smooth random pixels; width and height in `size`."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


@pytest.fixture
def image_bytes() -> ImageBytes:
    return make_image


@pytest.fixture
def photo_folder(tmp_path: Path) -> Path:
    """A folder of class folders: animal/cat (8), animal/dog (7), plant (6, of them a BMP, a WebP and a PNG)."""
    root = tmp_path / "photos"
    seed = 0
    for name, count in (("animal/cat", 8), ("animal/dog", 7), ("plant", 6)):
        folder = root / name
        folder.mkdir(parents=True)
        for number in range(count):
            seed += 1
            odd = {3: ("bmp", "BMP"), 4: ("webp", "WEBP"), 5: ("png", "PNG")} if name == "plant" else {}
            suffix, form = odd.get(number, ("jpg", "JPEG"))
            (folder / f"photo {number}.{suffix}").write_bytes(make_image(seed, (10 + seed, 40 - seed), form))
    return root


@pytest.fixture
def bamboo(capsys: pytest.CaptureFixture[str]) -> Bamboo:
    """Runs `bamboo shards …` in this process and returns (exit code, standard output, standard error)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["shards", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def packed(photo_folder: Path, tmp_path: Path, bamboo: Bamboo) -> Path:
    """`photo_folder`, packed seven to a shard."""
    out = tmp_path / "shards"
    code, _, errors = bamboo("pack", photo_folder, "--out", out, "--samples-per-shard", 7, "--processes", 1)
    assert code == 0, errors
    return out
