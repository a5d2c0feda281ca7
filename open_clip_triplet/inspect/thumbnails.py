"""Small WebP pictures of samples, made by all cores, in the order of the samples."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from open_clip_triplet.errors import ImageError
from open_clip_triplet.inspect.samples import ViewSample
from open_clip_triplet.threads import map_ahead
from open_clip_triplet.tripletdata.run.pictures import decode

QUALITY = 72


class Thumbnail(NamedTuple):
    """``webp``: encoded bytes; None where there is no image, or ``fault`` says why it cannot be shown."""

    webp: bytes | None = None
    size: tuple[int, int] = (0, 0)
    fault: str = ""


def thumbnail(data: bytes | None, pixels: int) -> Thumbnail:
    """The image fitted into a square of ``pixels``; ``size`` is the whole one's (width, height)."""
    if data is None:
        return Thumbnail()
    try:
        picture = decode(data, pixels)
    except ImageError as error:
        return Thumbnail(fault=str(error))
    picture.rgb.thumbnail((pixels, pixels))
    buffer = io.BytesIO()
    picture.rgb.save(buffer, "WEBP", quality=QUALITY, method=2)
    return Thumbnail(buffer.getvalue(), picture.size)


def with_thumbnails(
    samples: Iterable[ViewSample], pixels: int
) -> Iterator[tuple[ViewSample, Thumbnail, Thumbnail]]:
    """Every sample with its two pictures; the samples' own image bytes are let go."""

    def work(sample: ViewSample) -> tuple[ViewSample, Thumbnail, Thumbnail]:
        pair = thumbnail(sample.image, pixels), thumbnail(sample.neg_image, pixels)
        sample.image = sample.neg_image = None
        return sample, *pair

    return map_ahead(work, samples, depth=32)
