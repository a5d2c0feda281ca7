"""Untrusted image bytes: one way to decode them, for every stage that looks at pictures."""

from __future__ import annotations

import contextlib
import io
from typing import Any, NamedTuple

from open_clip_triplet.errors import ImageError

#: decompressed pixels beyond which an image is not opened (a bomb, or a poster)
MAX_PIXELS = 100_000_000
#: EXIF's tag of how a camera was held
ORIENTATION = 0x0112
#: formats that a trainer reads, and the member suffix of each
SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}


class Picture(NamedTuple):
    """``rgb``: PIL image, upright; ``suffix``: of the encoded bytes, None for a format that trainers do not
    read; ``size``: (width, height) before any halving; ``upright``: False where a trainer, which does not
    look at EXIF, would see the encoded bytes turned.
    """

    rgb: Any
    suffix: str | None
    size: tuple[int, int]
    upright: bool = True


@contextlib.contextmanager
def refused():
    """Turn whatever goes wrong with a picture into ImageError.

    Hostile bytes make decoders raise nearly anything (OSError, SyntaxError, TypeError, struct.error,
    DecompressionBombError ...), and one picture must not cost its shard.
    """
    try:
        yield
    except Exception as error:
        raise ImageError(f"{type(error).__name__}: {error}") from error


def decode(data: bytes, size: int = 0) -> Picture:
    """Decode a picture. ``size``: pixels of its shorter side that are needed; 0 means all.

    A large JPEG is halved by its decoder on the way where ``size`` allows: the same picture in a
    fraction of the time.

    Raises:
        ImageError: see there.
    """
    from PIL import Image, ImageOps

    with refused():
        image = Image.open(io.BytesIO(data))
        full, suffix, short = image.size, SUFFIXES.get(image.format or ""), min(image.size)
        if full[0] * full[1] > MAX_PIXELS:
            raise ValueError(f"{full[0]}x{full[1]} pixels")
        if size and short > size and image.format == "JPEG":
            image.draft("RGB", (full[0] * size // short, full[1] * size // short))
        image.load()
        turned = image.getexif().get(ORIENTATION, 1) not in (0, 1)
        upright = ImageOps.exif_transpose(image) if turned else image
        return Picture(upright if upright.mode == "RGB" else upright.convert("RGB"), suffix, full, not turned)


def encode(image, size: int, quality: int) -> bytes:
    """A PIL image as JPEG bytes, its shorter side brought down to ``size`` pixels (0: as it is)."""
    from PIL import Image

    if image.mode != "RGB":
        image = image.convert("RGB")
    short = min(image.size)
    if size and short > size:
        shape = tuple(max(1, round(side * size / short)) for side in image.size)
        # Two thirds of bicubic's time, and close to it on the way down.
        image = image.resize(shape, Image.Resampling.HAMMING, reducing_gap=2.0)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
