"""Images as they come out of a pipeline, and as an editing pipeline takes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

#: range of a channel's 8-bit values up to which an image shows nothing
FLAT = 2


@dataclass(frozen=True)
class BadImage:
    """Stands for an image that must not be saved. ``reason`` is counted."""

    reason: str


def images_of(pixels, blanked: Sequence[bool]) -> Iterator[Any]:
    """PIL images of a batch, and BadImage for those that show nothing.

    Args:
        pixels: [B, 3, H, W], 0 to 1.
        blanked: whether the safety checker took an image away.
    """
    from PIL import Image

    pixels = pixels.float()
    finite = pixels.isfinite().flatten(1).all(1)
    bytes_ = (pixels.nan_to_num() * 255).round().clamp(0, 255).byte()
    flat = (bytes_.flatten(2).amax(2) - bytes_.flatten(2).amin(2)).amax(1) <= FLAT
    rows = bytes_.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    for row, good, shows_nothing, taken in zip(rows, finite.tolist(), flat.tolist(), blanked, strict=True):
        if taken:
            yield BadImage("blanked by the safety checker")
        elif not good:
            yield BadImage("image is not a number")
        elif shows_nothing:
            yield BadImage("image is of one colour")
        else:
            yield Image.fromarray(row)


def fitted(image, size: int):
    """An image for a pipeline: shorter side ``size``, both sides multiples of 64, so that shapes repeat."""
    from PIL import Image

    scale = size / min(image.size)
    shape = tuple(max(64, round(side * scale / 64) * 64) for side in image.size)
    return image.resize(shape, Image.Resampling.BICUBIC)
