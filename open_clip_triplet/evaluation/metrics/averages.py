"""Averages of outcomes: within classes, with 95% intervals, and between two models."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from open_clip_triplet.evaluation.metrics.arrays import Floats

#: draws of a bootstrap
DRAWS = 2000
#: a part of fewer items has no bootstrap: drawing one item again gives that item, an interval of width 0
FEWEST_ITEMS = 10


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """Wilson's 95% score interval of a proportion. ``(nan, nan)`` for no items."""
    if total == 0:
        return math.nan, math.nan
    p, z = correct / total, 1.959963984540054
    centre = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    # the bounds are exactly 0 for none and 1 for all; rounding misses them
    return (max(0.0, centre - half) if correct else 0.0), (min(1.0, centre + half) if correct < total else 1.0)


def bootstrap_interval(
    counts: Sequence[tuple[int, int]], average: Callable[[Floats], Any]
) -> tuple[float, float]:
    """95% percentile bootstrap interval of an average of accuracies, items drawn anew in each part.

    Resampling n items of which k are right gives Binomial(n, k/n)/n, so that is drawn directly.

    Args:
        counts: (right, items) of each part. average: [parts, draws] accuracies -> [draws] averages.

    Returns:
        (low, high); NaN where a part has fewer than ``FEWEST_ITEMS``.
    """
    if any(items < FEWEST_ITEMS for _, items in counts):
        return math.nan, math.nan
    rng = np.random.default_rng(0)
    drawn = np.stack([rng.binomial(items, right / items, DRAWS) / items for right, items in counts])
    low, high = np.percentile(average(drawn), [2.5, 97.5])
    return float(low), float(high)


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact McNemar p-value from the discordant counts (right under one model alone)."""
    n, k = only_first + only_second, min(only_first, only_second)
    if n == 0:
        return 1.0
    logs = [
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2)
        for i in range(k + 1)
    ]
    return min(1.0, 2 * math.fsum(math.exp(value) for value in logs))


def paired_bootstrap(differences: Sequence[ArrayLike], average: Callable[[Floats], Any]) -> dict[str, float]:
    """Paired bootstrap of the difference between two models' averages, same items drawn for both.

    Args:
        differences: per part, [n] of outcome under the first model minus outcome under the second.
        average: [parts, draws] -> [draws].

    Returns:
        ``difference``, 95% ``low`` and ``high``, two-sided ``p`` (never below 1/DRAWS); all but the first
        NaN where a part has fewer than ``FEWEST_ITEMS``.
    """
    observed = average(np.array([[float(np.mean(np.asarray(part, dtype=float)))] for part in differences]))[0]
    if any(np.size(part) < FEWEST_ITEMS for part in differences):
        return {"difference": float(observed), "low": math.nan, "high": math.nan, "p": math.nan}
    rng = np.random.default_rng(0)
    drawn = []
    for part in differences:
        values, counts = np.unique(np.asarray(part, dtype=float), return_counts=True)
        drawn.append(rng.multinomial(counts.sum(), counts / counts.sum(), DRAWS) @ values / counts.sum())
    samples = average(np.stack(drawn))
    low, high = np.percentile(samples, [2.5, 97.5])
    tail = min((samples <= 0).mean(), (samples >= 0).mean())
    return {
        "difference": float(observed),
        "low": float(low),
        "high": float(high),
        "p": float(min(1.0, max(2 * tail, 1 / DRAWS))),
    }
