"""What a shard stores of an image: its bytes as they came wherever that is possible."""

import dataclasses
import io
from typing import Literal

from PIL import Image

from .images import decode_rgb

DEFAULT_QUALITY = 90

Change = Literal["kept", "converted", "resized"]


@dataclasses.dataclass(frozen=True)
class Encoded:
    """An image as a shard member; width and height as displayed."""

    extension: str
    data: bytes
    width: int
    height: int
    change: Change


def encode(data: bytes, resize: int | None, quality: int) -> Encoded:
    """Returns the member for an image, which is decoded in full to find damage.

    - short side > `resize`: resized (Pillow, bicubic, antialiased) so that the short side is `resize` and the long side
      round(long · resize / short), and stored as JPEG of `quality`, upright;
    - else JPEG, PNG and WebP: the bytes as they are, EXIF orientation included;
    - else (BMP, GIF, TIFF, …): a PNG of the same upright 8-bit RGB pixels; of several frames the first.

    Raises:
        UnreadableImageError: for damaged or unknown input.
    """
    pixels = decode_rgb(data)
    height, width = pixels.shape[1:]
    extension = _stored_as_is(data)
    if resize is not None and min(width, height) > resize:
        scale = resize / min(width, height)
        size = max(resize, round(width * scale)), max(resize, round(height * scale))
        image = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize(size, Image.Resampling.BICUBIC)
        return Encoded("jpg", _save(image, "JPEG", quality=quality), *size, "resized")
    if extension is None:
        image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        return Encoded("png", _save(image, "PNG"), width, height, "converted")
    return Encoded(extension, data, width, height, "kept")


def _stored_as_is(data: bytes) -> str | None:
    if data.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    return "webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def _save(image: Image.Image, form: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()
