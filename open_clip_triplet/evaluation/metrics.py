"""Metrics as pure numpy functions. A tie counts as wrong everywhere; NaN and infinity are refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

TIE_RULE = "a tie counts as wrong (the SugarCrepe authors' rule; clip_benchmark counts it as right)"
EQUAL_RULE = "captions, or class names, that are equal to a right answer count as right too"
DRAWS = 2000


def finite(name: str, features: ArrayLike) -> Floats:
    """The features as an array.

    Raises:
        ValueError: a row holds NaN or infinity. Every comparison with NaN is false, so that counting
            the wrong answers that score higher would find none and print 100 %.
    """
    array = np.asarray(features)
    bad = int((~np.isfinite(array).all(axis=-1)).sum())
    if bad:
        raise ValueError(f"{name}: {bad} of {len(array)} rows are NaN or infinite")
    return array


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


@dataclass(frozen=True)
class Ranking:
    """How n queries fared among m answers.

    ranks: [n] number of wrong answers that score at least as high as the best right one, so 0 is a hit
        at 1 and ties are wrong; m where the query has no right answer.
    right, wrong: [n] similarity of the best right and of the best wrong answer, -inf where there is none.
    best_wrong: [n] index of the best wrong answer.
    ties: queries where a wrong answer scores exactly as high as the best right one.
    """

    ranks: Ints
    right: Floats
    wrong: Floats
    best_wrong: Ints
    ties: int


def rank_answers(
    queries: ArrayLike,
    answers: ArrayLike,
    query_keys: tuple[ArrayLike, ArrayLike],
    answer_keys: tuple[ArrayLike, ArrayLike],
    block: int = 512,
) -> Ranking:
    """Rank answers for each query; an answer is right where it shares a key with the query.

    At most ``block`` rows of scores exist at once.

    Args:
        queries: [n, D]. answers: [m, D].
        query_keys: (query, key), two arrays of equal length: query i has key k. A query may have several.
        answer_keys: (answer, key), likewise.

    Raises:
        ValueError: NaN or infinity among the features.
    """
    x, y = finite("queries", queries), finite("answers", answers)
    owners, keys = _sorted_pairs(*query_keys)
    answer_of, key_of = (np.asarray(part, dtype=np.int64) for part in answer_keys)
    by_key = np.argsort(key_of, kind="stable")
    answer_of, key_of = answer_of[by_key], key_of[by_key]
    n, m = len(x), len(y)
    ranks, best_wrong = np.full(n, m, dtype=np.int64), np.zeros(n, dtype=np.int64)
    right, wrong, ties = np.full(n, -np.inf), np.full(n, -np.inf), 0
    for start in range(0, n if m else 0, block):
        scores = x[start : start + block] @ y.T
        first, last = np.searchsorted(owners, [start, start + len(scores)])
        lows = np.searchsorted(key_of, keys[first:last], "left")
        counts = np.searchsorted(key_of, keys[first:last], "right") - lows
        columns = answer_of[_ranges(lows, counts)]
        is_right = np.zeros(scores.shape, dtype=bool)
        is_right[np.repeat(owners[first:last] - start, counts), columns] = True
        best = np.where(is_right, scores, -np.inf).max(axis=1)
        others = np.where(is_right, -np.inf, scores)
        rows = slice(start, start + len(scores))
        has_right = np.isfinite(best)
        ranks[rows] = np.where(has_right, (others >= best[:, None]).sum(axis=1), m)
        ties += int(((others == best[:, None]).any(axis=1) & has_right).sum())
        best_wrong[rows] = others.argmax(axis=1)
        right[rows], wrong[rows] = best, others.max(axis=1)
    return Ranking(ranks, right, wrong, best_wrong, ties)


def _sorted_pairs(rows: ArrayLike, keys: ArrayLike) -> tuple[Ints, Ints]:
    owners = np.asarray(rows, dtype=np.int64)
    order = np.argsort(owners, kind="stable")
    return owners[order], np.asarray(keys, dtype=np.int64)[order]


def _ranges(starts: Ints, counts: Ints) -> Ints:
    """``start, start + 1, ...`` of each (start, count), one after another.

    >>> _ranges(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    offsets = np.repeat(starts - np.concatenate(([0], np.cumsum(counts)[:-1])), counts)
    return np.asarray(offsets + np.arange(int(counts.sum())), dtype=np.int64)


def retrieval_ranks(
    image_features: ArrayLike,
    text_features: ArrayLike,
    image_of_text: ArrayLike,
    caption_ids: ArrayLike | None = None,
) -> tuple[Ranking, Ranking]:
    """Ranks of the right answers, both ways.

    Args:
        image_features: [I, D]. text_features: [T, D]. image_of_text: [T] index of each caption's image.
        caption_ids: [T] integers, equal for equal captions, which then count as right for one another;
            None where all differ.

    Returns:
        (image to text: I queries among T captions, text to image: T queries among I images).
    """
    owner = np.asarray(image_of_text, dtype=np.int64)
    ids = np.arange(len(owner)) if caption_ids is None else np.asarray(caption_ids, dtype=np.int64)
    images, captions = (owner, ids), (np.arange(len(owner)), ids)
    return (
        rank_answers(image_features, text_features, images, captions),
        rank_answers(text_features, image_features, captions, images),
    )


def class_ranks(
    image_features: ArrayLike,
    classifier: ArrayLike,
    labels: ArrayLike,
    class_ids: ArrayLike | None = None,
) -> Ranking:
    """Rank of each image's class among all.

    Args:
        image_features: [n, D]. classifier: [C, D], a row per class. labels: [n] ints in 0..C-1.
        class_ids: [C] integers, equal for classes of one name; None where all differ.
    """
    ids = np.arange(len(np.asarray(classifier))) if class_ids is None else np.asarray(class_ids)
    targets = np.asarray(labels, dtype=np.int64)
    return rank_answers(
        image_features, classifier, (np.arange(len(targets)), ids[targets]), (np.arange(len(ids)), ids)
    )


def per_class_counts(correct: ArrayLike, labels: ArrayLike, classes: int) -> tuple[Ints, Ints]:
    """(right [C], items [C]) per class."""
    classes_of = np.asarray(labels, dtype=np.int64)
    right = np.bincount(classes_of, weights=np.asarray(correct, dtype=float), minlength=classes)
    return right.astype(np.int64), np.bincount(classes_of, minlength=classes)


def mean_per_class(correct: ArrayLike, labels: ArrayLike, classes: int) -> float:
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
    counts: Sequence[tuple[int, int]], average: Callable[[Floats], Any], *, seed: int = 0, draws: int = DRAWS
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
    differences: Sequence[ArrayLike], average: Callable[[Floats], Any], *, seed: int = 0, draws: int = DRAWS
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
    observed = average(np.array([[float(np.mean(np.asarray(part, dtype=float)))] for part in differences]))[0]
    low, high = np.percentile(samples, [2.5, 97.5])
    tail = min((samples <= 0).mean(), (samples >= 0).mean())
    return {
        "difference": float(observed),
        "low": float(low),
        "high": float(high),
        "p": float(min(1.0, max(2 * tail, 1 / draws))),
    }


def histogram(
    values: ArrayLike, bins: int = 100, low: float = -1.0, high: float = 1.0
) -> tuple[list[float], list[int]]:
    """(edges [bins + 1], counts [bins]) of similarities; values beyond an end count in its bin."""
    counts, edges = np.histogram(np.clip(values, low, high), bins=bins, range=(low, high))
    return [round(float(edge), 6) for edge in edges], [int(count) for count in counts]
