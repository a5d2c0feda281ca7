"""Turning images and captions into unit-norm float32 rows. Light imports: training uses this too."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from open_clip_triplet.errors import ImageError

#: Orientations of the EXIF tag 274 that ask a viewer to turn or mirror the stored pixels.
_ROTATED = range(2, 9)


def open_image(data: bytes):
    """Decode one image to an RGB ``PIL.Image``, with remarks on anything unusual about it.

    Grey, palette, alpha and CMYK become RGB; an animation gives its first frame. An EXIF rotation
    is *not* applied: the benchmarks' authors and clip_benchmark feed the stored pixels, and their
    numbers are the ones to compare with. Every such image is remarked on instead.

    Returns:
        (image, remarks): remarks out of ``"grey"``, ``"cmyk"``, ``"animated"``, ``"exif-rotated"``.

    Raises:
        ImageError: not an image, truncated, or too large to be a photograph.
        MemoryError: no memory to decode it now; the image may be sound.
    """
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data))
        remarks = []
        if image.mode in ("1", "L", "LA", "I", "I;16", "F"):
            remarks.append("grey")
        if image.mode == "CMYK":
            remarks.append("cmyk")
        if getattr(image, "n_frames", 1) > 1:
            remarks.append("animated")
            image.seek(0)
        if image.getexif().get(274) in _ROTATED:
            remarks.append("exif-rotated")
        return image.convert("RGB"), remarks
    except MemoryError:
        raise
    # Damaged files make PIL raise nearly anything: TypeError, struct.error, zlib.error, SyntaxError,
    # DecompressionBombError... One bad image must not end a run of hours.
    except Exception as error:
        raise ImageError(f"{type(error).__name__}: {error}") from error


def decoding_threads() -> int:
    """Threads for decoding: the cores this process may use, 8 at most (PIL releases the GIL)."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


class Encoder:
    """A model with its preprocessing and tokenizer, as two functions to unit-norm numpy rows.

    Args:
        model: anything with ``encode_image([n, 3, H, W])`` and ``encode_text([n, L])``, both to [n, D].
        preprocess: PIL image -> float tensor [3, H, W].
        tokenizer: list of n captions -> integer tensor [n, L].
        device: where batches go.
        autocast: a function to a context manager (as OpenCLIP's ``get_autocast`` gives), or None.
        input_dtype: what images are cast to, e.g. ``torch.float16`` for a model in pure fp16.
    """

    def __init__(
        self,
        model,
        preprocess: Callable,
        tokenizer: Callable,
        *,
        device="cpu",
        autocast=None,
        input_dtype=None,
    ):
        self.model, self.preprocess, self.tokenizer = model, preprocess, tokenizer
        self.device, self.input_dtype = device, input_dtype
        self.autocast = autocast or contextlib.nullcontext
        self._encode_text: Callable | None = None

    def images(self, tensors: Sequence) -> np.ndarray:
        """[n, D] float32, unit norm, of n preprocessed images."""
        import torch

        batch = torch.stack(list(tensors)).to(self.device, dtype=self.input_dtype, non_blocking=True)
        return self._rows(self.model.encode_image, batch)

    def texts(self, captions: Sequence[str]) -> np.ndarray:
        """[n, D] float32, unit norm, of n captions."""
        from open_clip_triplet.evaluation.trim import trimmed_text_encoder

        if self._encode_text is None:
            self._encode_text = trimmed_text_encoder(self.model, self.tokenizer, self.device, self._run)
        return self._rows(self._encode_text, self.tokenizer(list(captions)).to(self.device))

    def _run(self, encode: Callable, batch):
        import torch

        with torch.inference_mode(), self.autocast():
            return encode(batch)

    def _rows(self, encode: Callable, batch) -> np.ndarray:
        import torch

        features = self._run(encode, batch).float()
        return torch.nn.functional.normalize(features, dim=-1).cpu().numpy()


@contextlib.contextmanager
def evaluating(model):
    """The model in eval mode; each submodule's own mode is put back afterwards."""
    modules = getattr(model, "modules", None)
    before = [(module, module.training) for module in modules()] if modules else []
    if before:
        model.eval()
    try:
        yield model
    finally:
        for module, training in before:
            module.training = training


def decode_all(pool: ThreadPoolExecutor, load: Callable, items: Sequence, ahead: int = 64):
    """``load(item)`` of every item, in order, decoded ``ahead`` items in front of the reader."""
    pending = []
    for item in items:
        pending.append(pool.submit(load, item))
        if len(pending) >= ahead:
            yield pending.pop(0).result()
    for future in pending:
        yield future.result()
