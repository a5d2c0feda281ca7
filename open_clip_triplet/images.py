"""From an encoded image to a training tensor."""

from __future__ import annotations

import hashlib
import io
import random

from open_clip_triplet.counts import Dropped


def decode_pil(data: bytes):
    """An RGB PIL image, decoded as OpenCLIP does. EXIF rotation is ignored, as there.

    Raises:
        Dropped: for whatever PIL raises; its readers raise a dozen types on hostile bytes.
    """
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data))
        image.load()
        return image.convert("RGB")
    except Exception as error:
        raise Dropped("corrupt image", str(error)) from error


def seed_augmentation(*names) -> None:
    """Set the random state that augmentations draw from: torch's CPU generator, ``random`` and numpy.

    The state depends on ``names`` (seed, epoch, key, ...) alone, not on what was drawn before, so a
    sample is augmented alike whichever worker meets it and whatever came before it.
    """
    import numpy as np
    import torch

    digest = hashlib.blake2b("/".join(map(str, names)).encode(), digest_size=8).digest()
    seed = int.from_bytes(digest, "big")
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


class PilImages:
    """OpenCLIP's own transform on images decoded as it decodes them: bit-identical to it.

    Calling it with the encoded images of one sample returns their float32 tensors [3, H, W].
    """

    def __init__(self, preprocess):
        self.preprocess = preprocess

    def __call__(self, encoded: list[bytes], *names) -> list:
        """
        Raises:
            Dropped: one of the images cannot be decoded.
        """
        images = [decode_pil(data) for data in encoded]
        seed_augmentation(*names)
        return [self.preprocess(image) for image in images]
