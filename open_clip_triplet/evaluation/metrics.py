"""Metrics as pure numpy functions. A tie counts as wrong everywhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

TIE_RULE = "a tie counts as wrong (the SugarCrepe authors' rule; clip_benchmark counts it as right)"
DRAWS = 2000


def pair_similarities(x0, x1, y0, y1) -> np.ndarray:
    """[n, 6] float64 similarities of n samples: s00, s01, s10, s11, image-image, caption-caption.

    Args:
        x0, x1: [n, D] positive and negative images, unit norm. y0, y1: [n, D] their captions.
    """
    pairs = ((x0, y0), (x0, y1), (x1, y0), (x1, y1), (x0, x1), (y0, y1))
    return np.stack([np.einsum("nd,nd->n", a, b, dtype=np.float64) for a, b in pairs], axis=1)


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


def composition_ties(s00, s01, s10, s11) -> int:
    """Items where one of the four comparisons of ``composition_correct`` is a tie."""
    s00, s01, s10, s11 = (np.asarray(s) for s in (s00, s01, s10, s11))
    return int(((s00 == s01) | (s11 == s10) | (s00 == s10) | (s11 == s01)).sum())


def retrieval_ranks(image_features, text_features, image_of_text, block: int = 512):
    """Ranks of the right answers, both ways, in blocks: at most ``block`` rows of scores exist at once.

    Args:
        image_features: [I, D]. text_features: [T, D]. image_of_text: [T] index of each caption's image.

    Returns:
        (ranks per image [I], ranks per caption [T], ties). A rank is the number of wrong answers
        that score at least as high as the (best) right one, so 0 is a hit at 1 and ties are wrong.
        An image without captions has rank T.
    """
    images, texts = np.asarray(image_features), np.asarray(text_features)
    owner = np.asarray(image_of_text)
    ties = 0
    of_image = np.full(len(images), len(texts))
    for start in range(0, len(images), block):
        scores = images[start : start + block] @ texts.T
        own = owner[None, :] == np.arange(start, start + len(scores))[:, None]
        best = np.where(own, scores, -np.inf).max(axis=1, initial=-np.inf)[:, None]
        rank = ((scores >= best) & ~own).sum(axis=1)
        ties += int(((scores == best) & ~own).any(axis=1).sum())
        of_image[start : start + block] = np.where(own.any(axis=1), rank, len(texts))
    of_text = np.empty(len(texts), dtype=np.int64)
    for start in range(0, len(texts), block):
        scores = texts[start : start + block] @ images.T
        mine = owner[start : start + block]
        best = scores[np.arange(len(scores)), mine][:, None]
        of_text[start : start + block] = (scores >= best).sum(axis=1) - 1
        ties += int(((scores == best).sum(axis=1) > 1).sum())
    return of_image, of_text, ties


def class_ranks(image_features, classifier, labels, block: int = 4096) -> tuple[np.ndarray, np.ndarray, int]:
    """Rank of each image's class and the class predicted.

    Args:
        image_features: [n, D]. classifier: [C, D], a row per class. labels: [n] ints in 0..C-1.

    Returns:
        (ranks [n]: other classes scoring at least as high, predictions [n], ties).
    """
    features, weights, labels = np.asarray(image_features), np.asarray(classifier), np.asarray(labels)
    ranks, predicted, ties = np.empty(len(labels), np.int64), np.empty(len(labels), np.int64), 0
    for start in range(0, len(labels), block):
        scores = features[start : start + block] @ weights.T
        own = scores[np.arange(len(scores)), labels[start : start + block]][:, None]
        ranks[start : start + block] = (scores >= own).sum(axis=1) - 1
        predicted[start : start + block] = scores.argmax(axis=1)
        ties += int(((scores == own).sum(axis=1) > 1).sum())
    return ranks, predicted, ties


def per_class_counts(correct, labels, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """(right [C], items [C]) per class."""
    labels = np.asarray(labels)
    right = np.bincount(labels, weights=np.asarray(correct, dtype=float), minlength=classes)
    return right.astype(np.int64), np.bincount(labels, minlength=classes)


def mean_per_class(correct, labels, classes: int) -> float:
    """Mean over the classes that occur of the accuracy within each. NaN for no items."""
    right, items = per_class_counts(correct, labels, classes)
    present = items > 0
    return float((right[present] / items[present]).mean()) if present.any() else math.nan


def wilson_interval(correct: int, total: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson score interval of a proportion, 95% by default. ``(nan, nan)`` for no items."""
    if total == 0:
        return math.nan, math.nan
    p = correct / total
    centre = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_interval(
    counts: Sequence[tuple[int, int]], average: Callable, *, seed: int = 0, draws: int = DRAWS
) -> tuple[float, float]:
    """95% percentile bootstrap interval of an average of accuracies, items drawn anew in each part.

    Resampling n items of which k are right gives Binomial(n, k/n)/n, so that is drawn directly.

    Args:
        counts: (right, items) of each part. average: [parts, draws] accuracies -> [draws] averages.
    """
    if any(items == 0 for _, items in counts):
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    drawn = np.stack([rng.binomial(items, right / items, draws) / items for right, items in counts])
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


def paired_bootstrap(
    differences: Sequence[np.ndarray], average: Callable, *, seed: int = 0, draws: int = DRAWS
) -> dict[str, float]:
    """Paired bootstrap of the difference between two models' averages, same items drawn for both.

    Args:
        differences: per part, [n] of outcome under the first model minus outcome under the second.
        average: [parts, draws] -> [draws].

    Returns:
        ``difference``, 95% ``low`` and ``high``, two-sided ``p`` (never below 1/draws).
    """
    rng = np.random.default_rng(seed)
    drawn = []
    for part in differences:
        values, counts = np.unique(np.asarray(part, dtype=float), return_counts=True)
        drawn.append(rng.multinomial(counts.sum(), counts / counts.sum(), draws) @ values / counts.sum())
    samples = average(np.stack(drawn))
    observed = average(np.array([[float(np.mean(part))] for part in differences]))[0]
    low, high = np.percentile(samples, [2.5, 97.5])
    tail = min((samples <= 0).mean(), (samples >= 0).mean())
    return {
        "difference": float(observed),
        "low": float(low),
        "high": float(high),
        "p": float(min(1.0, max(2 * tail, 1 / draws))),
    }


def histogram(values, bins: int = 100, low: float = -1.0, high: float = 1.0) -> tuple[list, list]:
    """(edges [bins + 1], counts [bins]) of similarities; values beyond an end count in its bin."""
    counts, edges = np.histogram(np.clip(values, low, high), bins=bins, range=(low, high))
    return [round(float(edge), 6) for edge in edges], [int(count) for count in counts]
