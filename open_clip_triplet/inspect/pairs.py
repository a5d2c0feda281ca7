"""Similarities within samples: of a positive and its hard negative, in each modality and across both."""

from __future__ import annotations

import functools
import itertools
import sys
from collections import Counter
from collections.abc import Iterable

import numpy as np

from open_clip_triplet.errors import ImageError
from open_clip_triplet.evaluation.images import open_image
from open_clip_triplet.inspect.encoders import PairEncoder
from open_clip_triplet.inspect.samples import ViewSample
from open_clip_triplet.threads import map_ahead

#: columns of :func:`similarities`: sij is image i with caption j (0 positive, 1 negative); then positive and
#: negative of one modality; then a positive and that of another sample
COLUMNS = ("s00", "s01", "s10", "s11", "image", "text", "image of another", "text of another")


def similarities(
    samples: Iterable[ViewSample], encoder: PairEncoder, batch_size: int = 64, *,
    quiet: bool = True, keep_images: bool = False,
) -> tuple[list[ViewSample], np.ndarray]:
    """Every sample, its image bytes let go unless ``keep_images``, and [n, 8] cosine similarities (``COLUMNS``).

    NaN where a part is missing, cannot be decoded, or the encoder has no such half.
    """
    kept: list[ViewSample] = []
    rows = [np.empty((0, len(COLUMNS)))]
    prepared = map_ahead(functools.partial(_prepared, encoder), samples, depth=2 * batch_size)
    while found := list(itertools.islice(prepared, batch_size)):
        batch, tensors = [sample for sample, _ in found], [pair for _, pair in found]
        rows.append(_similarities(batch, tensors, encoder))
        for sample in batch if not keep_images else ():
            sample.image = sample.neg_image = None
        kept += batch
        if not quiet:
            print(f"\r{encoder.label}: {len(kept):,} samples", end="", file=sys.stderr)
    if not quiet:
        print(file=sys.stderr)
    return kept, np.concatenate(rows)


def _prepared(encoder: PairEncoder, sample: ViewSample) -> tuple[ViewSample, list]:
    """A sample with its two images as tensors; None for one that is missing or cannot be decoded."""

    def prepare(data: bytes | None):
        if data is None or encoder.prepare is None:
            return None
        try:
            return encoder.prepare(open_image(data)[0])  # the pixels that the benchmarks see
        except (ImageError, MemoryError):
            return None

    return sample, [prepare(data) for data in (sample.image, sample.neg_image)]


def _similarities(batch: list[ViewSample], tensors: list[list], encoder: PairEncoder) -> np.ndarray:
    captions = [[next(iter(texts), None) for texts in (s.captions, s.neg_captions)] for s in batch]
    (x0, x1), (y0, y1) = (
        _encoded(parts, encode) for parts, encode in ((tensors, encoder.images), (captions, encoder.texts))
    )
    values = np.full((len(batch), len(COLUMNS)), np.nan)
    if encoder.joint:
        for column, (image, text) in enumerate(((x0, y0), (x0, y1), (x1, y0), (x1, y1))):
            values[:, column] = _cosine(image, text)
    values[:, 4], values[:, 5] = _cosine(x0, x1), _cosine(y0, y1)
    if len(batch) > 1:
        values[:, 6], values[:, 7] = _cosine(x0, np.roll(x0, 1, axis=0)), _cosine(y0, np.roll(y0, 1, axis=0))
    return values


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("nd,nd->n", a, b, dtype=np.float64)


def _encoded(parts: list[list], encode) -> tuple[np.ndarray, np.ndarray]:
    """Rows [n, D] of the n positives and of the n negatives; NaN for a part that is None."""
    flat = [part for pair in parts for part in pair]
    have = [n for n, part in enumerate(flat) if part is not None] if encode else []
    found = encode([flat[n] for n in have]) if have else np.empty((0, 1))
    rows = np.full((len(flat), found.shape[1]), np.nan, np.float32)
    rows[have] = found
    return rows[0::2], rows[1::2]


def count_left_out(values: np.ndarray, encoder: PairEncoder) -> Counter:
    """Samples that give no value, by half of the encoder."""
    names = [(name, half) for name, half in (("image", encoder.images), ("text", encoder.texts)) if half]
    return Counter({name: int(np.isnan(values[:, COLUMNS.index(name)]).sum()) for name, _ in names})
