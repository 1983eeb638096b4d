"""Image bytes → uint8 RGB pixels, the same for every reader in the house.

What is done on purpose: EXIF orientation is applied; greyscale is repeated to three channels; an alpha channel is dropped; a
palette is looked up; CMYK and YCCK JPEGs are converted as Pillow converts them; 16-bit samples are scaled to 8 bits by v / 257,
not clipped.
"""

import dataclasses
import io
import warnings

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from torchvision.io import ImageReadMode

MAX_PIXELS = 178_956_970  # Pillow's own bound for a decompression bomb

Encoded = bytes | bytearray | memoryview

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"


class UnreadableImageError(ValueError):
    """Bytes that are no whole image of a known format; the message is the reason, without the sample's name."""


@dataclasses.dataclass
class DecodeCounts:
    """How many images the fast path (torchvision) decoded, and how many fell back to Pillow."""

    fast: int = 0
    fallback: int = 0


def decode_rgb(data: Encoded, counts: DecodeCounts | None = None) -> torch.Tensor:
    """Returns uint8[3, H, W] in [0, 255], as displayed, with channels-last strides where torchvision decoded it.

    What can be written is decoded where it lies; bytes, which torch must not alias, are copied first.

    Raises:
        UnreadableImageError: for truncated, corrupt, empty, oversized or unknown input.
    """
    image = _decode_fast(data)
    if counts is not None:
        counts.fast += image is not None
        counts.fallback += image is None
    return _decode_pillow(data) if image is None else image


def _decode_fast(data: Encoded) -> torch.Tensor | None:
    """Returns torchvision's decoding, or None where Pillow has to look: other formats, CMYK, 16 bits, oversized, damaged."""
    # The operators themselves: the functions that torchvision wraps around them recommend another package at every call.
    operators, decode = torch.ops.image, None
    if data[:3] == _JPEG:
        components, pixels = _jpeg_header(data)
        decode = operators.decode_jpeg if components in (1, 3) and pixels <= MAX_PIXELS else None
    elif data[:8] == _PNG and len(data) > 26 and data[24] <= 8:
        pixels = int.from_bytes(data[16:20], "big") * int.from_bytes(data[20:24], "big")
        decode = operators.decode_png if pixels <= MAX_PIXELS else None
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        decode = operators.decode_webp if not _is_turned_or_animated_webp(data) and _within_bound(data) else None
    if decode is None:
        return None
    try:
        encoded = torch.frombuffer(bytearray(data) if isinstance(data, bytes) else data, dtype=torch.uint8)
        turns_upright = () if decode is operators.decode_webp else (True,)
        image: torch.Tensor = decode(encoded, ImageReadMode.RGB.value, *turns_upright)
    except RuntimeError:  # libjpeg's or libpng's complaint; Pillow gives the final word
        return None
    return image


def _jpeg_header(data: Encoded) -> tuple[int, int]:
    """Returns (components, pixels) of the first frame header of a JPEG, or (0, 0) where there is none."""
    position = 2
    while position + 9 < len(data):
        if data[position] != 0xFF:
            return 0, 0
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = (int.from_bytes(data[position + at : position + at + 2], "big") for at in (5, 7))
            return data[position + 9], height * width
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return 0, 0


def _is_turned_or_animated_webp(data: Encoded) -> bool:
    """Whether a WebP has an EXIF chunk, which torchvision does not apply, or several frames."""
    return data[12:16] == b"VP8X" and len(data) > 20 and bool(data[20] & 0b0000_1010)


def _within_bound(data: Encoded) -> bool:
    try:
        width, height = image_size(data)
    except UnreadableImageError:
        return False
    return width * height <= MAX_PIXELS


def _decode_pillow(data: Encoded) -> torch.Tensor:
    return torch.from_numpy(np.array(open_rgb(data))).permute(2, 0, 1)


def open_rgb(data: Encoded) -> Image.Image:
    """Returns the image as a loaded Pillow image of mode RGB, as displayed; the slow twin of `decode_rgb`."""
    assert not ImageFile.LOAD_TRUNCATED_IMAGES, "a truncated image must be an error"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # corrupt EXIF and the like: either the pixels decode or they do not
            with Image.open(io.BytesIO(data)) as opened:
                _refuse_bomb(*opened.size)
                upright = ImageOps.exif_transpose(opened)
                return _to_rgb(upright)
    except UnreadableImageError:
        raise
    # Pillow's plug-ins raise whatever their parser met (OSError, SyntaxError, struct.error, ValueError, …)
    except Exception as error:  # noqa: BLE001
        raise UnreadableImageError(_reason(data, error)) from None


def image_size(data: Encoded) -> tuple[int, int]:
    """Returns (width, height) as displayed, from the header alone.

    Raises:
        UnreadableImageError: when there is no readable header.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as opened:
                width, height = opened.size
                turned = opened.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except Exception as error:  # noqa: BLE001 (as in open_rgb)
        raise UnreadableImageError(_reason(data, error)) from None
    return (height, width) if turned else (width, height)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _refuse_bomb(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UnreadableImageError(f"{width}×{height} pixels: over the bound of {MAX_PIXELS:,}")


def _reason(data: Encoded, error: Exception) -> str:
    if not data:
        return "empty file"
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format"
    return f"damaged image ({' '.join(str(error).split())})"
