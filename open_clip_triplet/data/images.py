"""From the encoded images of a sample to training tensors: ``--image-decoder pil`` and ``fast``.

``pil`` is OpenCLIP's own transform, to the bit. ``fast`` makes the same crops of the same images with
less work: simplejpeg (libjpeg-turbo) decodes JPEGs, at a half, quarter or eighth of their size where
the crop is large enough; torch crops and resizes uint8; uint8 leaves the worker, and conversion and
normalisation are left to the device (:mod:`open_clip_triplet.data.device`).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import random
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

from open_clip_triplet.data.counts import Dropped

#: A JPEG is decoded at 1/2, 1/4 or 1/8 of its size only if at least this many of its pixels remain for
#: each of the crop's, in height and width; so the mean difference to ``pil`` stays under 1.5 / 255.
PIXELS_LEFT = {8: 2.5, 4: 2.0, 2: 1.5}
#: A JPEG's colours, kept at half its size, are repeated and not interpolated where the crop has as many
#: pixels for each one it becomes.
PIXELS_FOR_COARSE_COLOURS = 1.5


def decode_pil(data: bytes, max_pixels: int | None = None):
    """An RGB PIL image, decoded as OpenCLIP does. EXIF rotation is ignored, as there.

    Raises:
        Dropped: for whatever PIL raises; its readers raise a dozen types on hostile bytes. And for an image
            of more than ``max_pixels``, before it is decoded.
    """
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data))
        _check_pixels(image.height, image.width, max_pixels)
        image.load()
        return image.convert("RGB")
    except Dropped:
        raise
    except Exception as error:
        raise Dropped("corrupt image", str(error)) from error


def _check_pixels(height: int, width: int, max_pixels: int | None) -> None:
    if max_pixels and height * width > max_pixels:
        raise Dropped("image too large", f"{width}x{height} pixels, --max-image-pixels {max_pixels}")


@contextlib.contextmanager
def augmentation_state(*names, torch_only: bool = False):
    """Random state of torch (CPU), ``random`` and numpy that depends on ``names`` alone.

    So a sample is augmented alike whichever worker meets it and whatever came before it. In the training
    process (``--workers 0``) the states are put back afterwards; a worker has no other use for them.
    ``torch_only`` saves the time of the two that torchvision's crop does not draw from.
    """
    digest = hashlib.blake2b("/".join(map(str, names)).encode(), digest_size=8).digest()
    seed = int.from_bytes(digest, "big")
    before = None
    if get_worker_info() is None:
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    torch.default_generator.manual_seed(seed)
    if not torch_only:
        random.seed(seed)
        np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        if before:
            torch.set_rng_state(before[0])
            random.setstate(before[1])
            np.random.set_state(before[2])


def crop_boxes(crop, sizes: list[tuple[int, int]], same: bool) -> list[tuple[int, int, int, int]]:
    """(top, left, height, width) of a RandomResizedCrop for each image of a sample.

    sizes: (height, width) of the images. same: one draw for all, carried over in proportion where the
    sizes differ.
    """
    if not same:
        return [random_crop(crop, *size) for size in sizes]
    first = random_crop(crop, *sizes[0])
    boxes = [first]
    for height, width in sizes[1:]:
        y, x = height / sizes[0][0], width / sizes[0][1]
        top, left = round(first[0] * y), round(first[1] * x)
        bottom, right = round((first[0] + first[2]) * y), round((first[1] + first[3]) * x)
        boxes.append((top, left, max(1, bottom - top), max(1, right - left)))
    return boxes


def random_crop(crop, height: int, width: int) -> tuple[int, int, int, int]:
    """(top, left, height, width) that torchvision's ``crop.get_params`` would draw.

    The draws are the same, at a quarter of the time: a try is refused more often than not, and costs
    torchvision a dozen tensors. Arithmetic is in float64, so about one box in 30,000 is another one: its
    size is rounded differently, and its place drawn from what is left.
    """
    low, high = (math.log(ratio) for ratio in crop.ratio)
    for _ in range(10):
        area, ratio = torch.rand(2).tolist()
        area = height * width * (crop.scale[0] + area * (crop.scale[1] - crop.scale[0]))
        ratio = math.exp(low + ratio * (high - low))
        box = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < box[0] <= height and 0 < box[1] <= width:
            top = int(torch.randint(height - box[0] + 1, (1,)))
            left = int(torch.randint(width - box[1] + 1, (1,)))
            return top, left, *box
    # None of ten fits: the middle, as much of it as the ratios allow.
    box = min(height, round(width / crop.ratio[0])), min(width, round(height * crop.ratio[1]))
    return (height - box[0]) // 2, (width - box[1]) // 2, *box


class PilImages:
    """OpenCLIP's own transform on images decoded as it decodes them: bit-identical to it.

    Called with the encoded images of one sample, and the names their random state comes from, it
    returns float32 tensors [3, H, W], normalised. ``same_crop``: positive and negative image are cropped
    alike; everything else stays OpenCLIP's.
    """

    normalize = None

    def __init__(self, preprocess, *, same_crop: bool = False, max_pixels: int | None = None):
        self.preprocess, self.same_crop, self.max_pixels = preprocess, same_crop, max_pixels
        if same_crop:
            self._crop, self._rest = split_transform(preprocess)

    def __call__(self, encoded: list[bytes], *names) -> list[torch.Tensor]:
        """
        Raises:
            Dropped: one of the images cannot be decoded.
        """
        images = [decode_pil(data, self.max_pixels) for data in encoded]
        with augmentation_state(*names):
            if not self.same_crop:
                return [self.preprocess(image) for image in images]
            boxes = crop_boxes(self._crop, [(image.height, image.width) for image in images], same=True)
            return [self._finish(image, box) for image, box in zip(images, boxes)]

    def _finish(self, image, box) -> torch.Tensor:
        from torchvision.transforms import functional as F

        crop = self._crop
        image = F.resized_crop(image, *box, crop.size, crop.interpolation, antialias=crop.antialias)
        for step in self._rest:
            image = step(image)
        return image


class FastImages:
    """The crops of ``pil`` as uint8 tensors [H, W, 3], not normalised yet (``normalize`` has how).

    preprocess: OpenCLIP's training transform, of which crop, colour jitter and grey scale are done.

    Raises:
        ValueError: the transform has a step that cannot be done here; it is named.
    """

    def __init__(self, preprocess, *, same_crop: bool = False, max_pixels: int | None = None):
        import simplejpeg  # noqa: F401  a missing decoder is found out before training starts

        self.same_crop, self.max_pixels = same_crop, max_pixels
        self._crop, rest = split_transform(preprocess)
        names = [type(step).__name__ for step in rest]
        self._jitter = [step for step, name in zip(rest, names) if name in ("color_jitter", "gray_scale")]
        done = ("MaybeConvertMode", "MaybeToTensor", "ToTensor", "Normalize", "color_jitter", "gray_scale")
        for name in names:
            if name not in done:
                raise ValueError(f"--image-decoder fast cannot do the augmentation {name}; use pil")
        if str(self._crop.interpolation.value) != "bicubic" or names[-1] != "Normalize":
            raise ValueError("--image-decoder fast needs a bicubic crop and a final Normalize; use pil")
        self.normalize = rest[-1]

    def __call__(self, encoded: list[bytes], *names) -> list[torch.Tensor]:
        """
        Raises:
            Dropped: one of the images cannot be decoded.
        """
        sizes = [image_size(data) for data in encoded]
        for size in sizes:
            _check_pixels(*size, self.max_pixels)
        with augmentation_state(*names, torch_only=not self._jitter):
            boxes = crop_boxes(self._crop, sizes, self.same_crop)
            return [self._make(data, size, box) for data, size, box in zip(encoded, sizes, boxes)]

    def _make(self, data: bytes, size: tuple[int, int], box: tuple[int, int, int, int]) -> torch.Tensor:
        pixels = decode_fast(data, *decode_scale(box, self._crop.size))
        image = resize_box(pixels, size, box, self._crop.size)
        if not self._jitter:
            return image
        from PIL import Image

        picture = Image.fromarray(image.numpy())
        for step in self._jitter:
            picture = step(picture)
        return torch.from_numpy(np.array(picture))


def split_transform(preprocess) -> tuple:
    """OpenCLIP's training transform as its random crop and the list of what follows.

    Raises:
        ValueError: it does not begin with torchvision's RandomResizedCrop (``use_timm`` in --aug-cfg).
    """
    from torchvision.transforms import RandomResizedCrop

    steps = list(getattr(preprocess, "transforms", [preprocess]))
    if type(steps[0]) is not RandomResizedCrop:
        raise ValueError(
            f"--image-decoder fast and --same-crop need OpenCLIP's RandomResizedCrop; this transform begins "
            f"with {type(steps[0]).__name__} (use_timm in --aug-cfg?). Use --image-decoder pil."
        )
    return steps[0], steps[1:]


def image_size(data: bytes) -> tuple[int, int]:
    """(height, width) from the header.

    Raises:
        Dropped: not an image.
    """
    import simplejpeg

    try:
        return simplejpeg.decode_jpeg_header(data, strict=False)[:2]
    except Exception:  # KeyError on a header without colours, ValueError on the rest: PIL decides
        from PIL import Image

        try:
            width, height = Image.open(io.BytesIO(data)).size
        except Exception as error:
            raise Dropped("corrupt image", str(error)) from error
        return height, width


def decode_scale(box: tuple[int, int, int, int], out: tuple[int, int]) -> tuple[int, bool]:
    """How coarsely a JPEG may be decoded for a crop.

    Returns the part of its height and width, 1, 2, 4 or 8, and whether colours may be repeated.
    """
    pixels = min(box[2] / out[0], box[3] / out[1])
    part = next((part for part, left in PIXELS_LEFT.items() if pixels >= part * left), 1)
    return part, pixels >= PIXELS_FOR_COARSE_COLOURS


def decode_fast(data: bytes, part: int, coarse_colours: bool = False) -> np.ndarray:
    """RGB pixels [H, W, 3] at about 1/``part`` of the size for JPEGs, whole for everything else.

    What libjpeg-turbo does not decode without a warning (CMYK, damage of any kind) goes to PIL, which
    decides, so both decoders accept the same images.

    Raises:
        Dropped: PIL cannot decode it either.
    """
    import simplejpeg

    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours in ("YCbCr", "Gray", "RGB") and height * width < 2**27:
            size = {"min_height": -(-height // part), "min_width": -(-width // part), "min_factor": 1}
            return simplejpeg.decode_jpeg(data, fastupsample=coarse_colours, **(size if part > 1 else {}))
    except Exception:  # whatever it raises on hostile bytes, PIL decides
        pass
    return np.array(decode_pil(data))


def resize_box(
    pixels: np.ndarray, size: tuple[int, int], box: tuple[int, int, int, int], out: tuple[int, int]
) -> torch.Tensor:
    """Crop and resize, bicubic with antialiasing, on uint8.

    pixels: [h, w, 3], the image at a fraction of its ``size`` or whole. box: in pixels of ``size``.
    out: (height, width). Returns [*out, 3].

    In a reduced image a crop may begin between two pixels. The kernel can only begin on one, so it
    begins a few rows and columns earlier, where the two grids nearly meet, and those are cut off.
    """
    starts, stops, extra, scales = [], [], [], []
    for axis in (0, 1):
        ratio = pixels.shape[axis] / size[axis]
        step = box[axis + 2] * ratio / out[axis]  # pixels read per pixel made
        start, drop = align_grid(box[axis] * ratio, step)
        starts.append(start)
        stops.append(round((box[axis] + box[axis + 2]) * ratio))
        extra.append(drop)
        scales.append(1 / step)
    if min(starts) < 0:
        margin = [max(0, -start) for start in starts]
        pixels = np.pad(pixels[: stops[0], : stops[1]], [(margin[0], 0), (margin[1], 0), (0, 0)], mode="edge")
        starts, stops = ([n + m for n, m in zip(ends, margin)] for ends in (starts, stops))
    crop = torch.from_numpy(pixels[starts[0] : stops[0], starts[1] : stops[1]]).permute(2, 0, 1)
    shape = [out[0] + extra[0], out[1] + extra[1]]
    made = torch.empty(1, 3, *shape, dtype=torch.uint8, memory_format=torch.channels_last)
    # What interpolate() calls, with the scale set freely, and channels last as everything here.
    resize: Any = torch._C._nn._upsample_bicubic2d_aa
    resize(crop[None], shape, False, *scales, out=made)
    return made[0, :, extra[0] :, extra[1] :].permute(1, 2, 0)


def align_grid(begin: float, step: float) -> tuple[int, int]:
    """(start, drop): a whole ``start`` with start + drop * step nearest to ``begin``, drop < 8."""
    if begin == int(begin):
        return int(begin), 0
    tries = [(round(begin - drop * step), drop) for drop in range(8)]
    return min(tries, key=lambda found: (round(abs(found[0] + found[1] * step - begin), 1), found[1]))
