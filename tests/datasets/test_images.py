"""Decoding against Pillow: orientations, colour modes, bit depths, formats, damage, bombs."""

import io
import struct
import warnings
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from bamboo.datasets.images import DecodeCounts, UnreadableImageError, decode_rgb, image_size, open_rgb

ImageBytes = Callable[..., bytes]


SIZE = (12, 10)


def reference(data: bytes) -> np.ndarray:
    """Pillow's own pixels, as displayed."""
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def decoded(data: bytes) -> np.ndarray:
    image = decode_rgb(data)
    assert image.dtype == torch.uint8
    return image.permute(1, 2, 0).numpy()


def close(data: bytes, expected: np.ndarray, tolerance: int = 0) -> None:
    ours = decoded(data)
    assert ours.shape == expected.shape
    assert np.abs(ours.astype(int) - expected.astype(int)).max() <= tolerance
    assert image_size(data) == (expected.shape[1], expected.shape[0])
    slow = np.asarray(open_rgb(data))
    assert np.abs(slow.astype(int) - expected.astype(int)).max() <= tolerance


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_applied(image_bytes: ImageBytes, form: str, orientation: int) -> None:
    """Pixels and size against Pillow's exif_transpose, for the eight orientations of EXIF 2.3."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if form == "WEBP" else {}
    data = image_bytes(orientation, SIZE, form, exif=exif, **options)
    assert reference(data).shape[:2] == (SIZE if orientation >= 5 else SIZE[::-1])
    close(data, reference(data), 2 if form == "JPEG" else 0)


@pytest.mark.parametrize(("form", "tolerance"), [("JPEG", 2), ("PNG", 0), ("WEBP", 0)])
def test_greyscale_becomes_three_equal_channels(image_bytes: ImageBytes, form: str, tolerance: int) -> None:
    """Greyscale files against Pillow's convert("RGB")."""
    data = image_bytes(1, SIZE, form, "L", **({"lossless": True} if form == "WEBP" else {}))
    close(data, reference(data), tolerance)
    assert (decoded(data)[..., 0] == decoded(data)[..., 2]).all()


def test_cmyk_jpeg_is_converted_as_pillow_does(image_bytes: ImageBytes) -> None:
    """CMYK JPEG against Pillow's conversion, through the counted fallback."""
    data, counts = image_bytes(2, SIZE, "JPEG", "CMYK"), DecodeCounts()
    close(data, reference(data))
    decode_rgb(data, counts)
    assert (counts.fast, counts.fallback) == (0, 1)


def test_jpeg_takes_the_fast_path_and_agrees_with_pillow(image_bytes: ImageBytes) -> None:
    """An ordinary JPEG, counted as fast, against Pillow within 2 of 255 (both are libjpeg-turbo)."""
    data, counts = image_bytes(3, (64, 48), quality=95), DecodeCounts()
    assert np.abs(decode_rgb(data, counts).permute(1, 2, 0).numpy().astype(int) - reference(data)).max() <= 2
    assert (counts.fast, counts.fallback) == (1, 0)


def test_palette_with_transparency_keeps_the_palette_colours() -> None:
    """A PNG palette with a transparent entry against the palette looked up by hand."""
    indices = np.arange(12, dtype=np.uint8).reshape(3, 4) % 3
    palette = [255, 0, 0, 0, 255, 0, 0, 0, 255]
    image = Image.frombytes("P", (4, 3), indices.tobytes())
    image.putpalette(palette)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=1)
    close(buffer.getvalue(), np.array(palette, np.uint8).reshape(3, 3)[indices])


def test_gif_takes_the_first_frame(image_bytes: ImageBytes) -> None:
    """A GIF of two frames against Pillow's first frame."""
    first, second = (Image.open(io.BytesIO(image_bytes(seed, SIZE, "PNG"))).convert("P") for seed in (1, 2))
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=[second])
    close(buffer.getvalue(), reference(buffer.getvalue()))


def test_sixteen_bit_png_is_scaled_not_clipped() -> None:
    """16-bit grey samples v against round(v / 257) worked by hand."""
    values = np.array([[0, 256, 257, 32768], [65535, 65534, 300, 50000]], np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    expected = np.repeat(np.round(values / 257).astype(np.uint8)[..., None], 3, axis=2)
    close(buffer.getvalue(), expected)


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_alpha_is_dropped(form: str) -> None:
    """RGBA against its own colour channels: no blending with any background."""
    pixels = np.random.default_rng(0).integers(0, 256, (10, 12, 4), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(buffer, form, **({"lossless": True, "exact": True} if form == "WEBP" else {}))
    close(buffer.getvalue(), pixels[..., :3])


@pytest.mark.parametrize(("form", "mode"), [("BMP", "RGB"), ("TIFF", "RGB"), ("GIF", "P"), ("PPM", "RGB"), ("PNG", "1"), ("TIFF", "CMYK")])
def test_other_formats_through_pillow(image_bytes: ImageBytes, form: str, mode: str) -> None:
    """Formats that torchvision does not read against Pillow."""
    data = image_bytes(4, SIZE, form, mode)
    close(data, reference(data))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_truncation_is_an_error(image_bytes: ImageBytes, form: str) -> None:
    """A file cut at half its length: an error that says damaged, never grey pixels."""
    data = image_bytes(5, (200, 150), form)
    with pytest.raises(UnreadableImageError, match="damaged image"):
        decode_rgb(data[: len(data) // 2])


@pytest.mark.parametrize(("data", "reason"), [(b"", "empty file"), (b"<html>no</html>", "not an image"), (b"\xff\xd8\xff", "image")])
def test_what_is_no_image_is_named(data: bytes, reason: str) -> None:
    """Empty, textual and header-only input: the reason in words."""
    with pytest.raises(UnreadableImageError, match=reason):
        decode_rgb(data)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_decompression_bomb_is_refused_by_its_header(image_bytes: ImageBytes, form: str) -> None:
    """A header that claims 60,000 × 60,000 pixels is refused before memory for them is taken."""
    data = bytearray(image_bytes(6, SIZE, form))
    if form == "PNG":
        data[16:24] = struct.pack(">II", 60000, 60000)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    else:
        frame = data.index(b"\xff\xc0")
        data[frame + 5 : frame + 9] = struct.pack(">HH", 60000, 60000)
    with warnings.catch_warnings(), pytest.raises(UnreadableImageError, match=r"60000|bound|bomb"):
        warnings.simplefilter("error")
        decode_rgb(bytes(data))
