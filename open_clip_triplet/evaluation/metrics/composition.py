"""Scores of pairs of images and captions, and the distribution of their similarities."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from open_clip_triplet.evaluation.metrics.arrays import Bools, Floats, finite


def pair_similarities(x0: ArrayLike, x1: ArrayLike, y0: ArrayLike, y1: ArrayLike) -> Floats:
    """[n, 6] float64 similarities of n samples: s00, s01, s10, s11, image-image, caption-caption.

    Args:
        x0, x1: [n, D] positive and negative images, unit norm. y0, y1: [n, D] their captions.

    Raises:
        ValueError: NaN or infinity among them.
    """
    a, b, c, d = (finite(name, rows) for name, rows in zip(("x0", "x1", "y0", "y1"), (x0, x1, y0, y1)))
    pairs = ((a, c), (a, d), (b, c), (b, d), (a, b), (c, d))
    return np.stack([row_similarities(first, second) for first, second in pairs], axis=1)


def row_similarities(a: Floats, b: Floats) -> Floats:
    """[n] float64 similarity of row i of ``a`` [n, D] and row i of ``b`` [n, D]."""
    similarities: Floats = np.einsum("nd,nd->n", a, b, dtype=np.float64)
    return similarities


def composition_correct(s00: ArrayLike, s01: ArrayLike, s10: ArrayLike, s11: ArrayLike) -> dict[str, Bools]:
    """Winoground's three outcomes per item, from the four similarities of two pairs.

    ``sij`` is the similarity of image i and caption j, shape [n]; 0 is the positive pair, 1 the
    hard negative pair. Text: both images prefer their own caption. Image: both captions prefer
    their own image. Group: both. Ties are wrong.

    Returns:
        Boolean arrays [n] under ``text``, ``image``, ``group``.

    Reference: Thrush et al., CVPR 2022, Eqs. 1-3.
    """
    a, b, c, d = (np.asarray(s) for s in (s00, s01, s10, s11))
    text = (a > b) & (d > c)
    image = (a > c) & (d > b)
    return {"text": text, "image": image, "group": text & image}


def composition_ties(s00: ArrayLike, s01: ArrayLike, s10: ArrayLike, s11: ArrayLike) -> int:
    """Items where one of the four comparisons of ``composition_correct`` is a tie."""
    a, b, c, d = (np.asarray(s) for s in (s00, s01, s10, s11))
    return int(((a == b) | (d == c) | (a == c) | (d == b)).sum())


def histogram(values: ArrayLike) -> tuple[list[float], list[int]]:
    """(edges [101], counts [100]) of similarities from -1 to 1; values beyond an end count in its bin."""
    counts, edges = np.histogram(np.clip(values, -1, 1), bins=100, range=(-1, 1))
    return [round(float(edge), 6) for edge in edges], [int(count) for count in counts]
