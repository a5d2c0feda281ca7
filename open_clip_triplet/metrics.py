"""Metrics as pure numpy functions. A tie counts as wrong everywhere."""

from __future__ import annotations

import math

import numpy as np


def composition_correct(s00, s01, s10, s11) -> dict[str, np.ndarray]:
    """Winoground's three outcomes per item, from the four similarities of two pairs.

    ``sij`` is the similarity of image i and caption j, shape [n]; 0 is the positive pair, 1 the
    hard negative pair. Text: both images prefer their own caption. Image: both captions prefer
    their own image. Group: both. Ties are wrong.

    Returns:
        Boolean arrays [n] under ``text``, ``image``, ``group``.

    Reference: Thrush et al., CVPR 2022, Eqs. 1-3.
    """
    s00, s01, s10, s11 = (np.asarray(s) for s in (s00, s01, s10, s11))
    text = (s00 > s01) & (s11 > s10)
    image = (s00 > s10) & (s11 > s01)
    return {"text": text, "image": image, "group": text & image}


def wilson_interval(correct: int, total: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson score interval of a proportion, 95% by default. ``(nan, nan)`` for no items."""
    if total == 0:
        return math.nan, math.nan
    p = correct / total
    centre = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def histogram(values, bins: int = 40, low: float = -1.0, high: float = 1.0) -> tuple[list, list]:
    """(edges [bins + 1], counts [bins]) of similarities; values beyond an end count in its bin."""
    counts, edges = np.histogram(np.clip(values, low, high), bins=bins, range=(low, high))
    return [round(float(edge), 6) for edge in edges], [int(count) for count in counts]
