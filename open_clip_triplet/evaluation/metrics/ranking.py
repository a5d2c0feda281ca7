"""How high right answers rank: retrieval both ways, and classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from open_clip_triplet.evaluation.metrics.arrays import Floats, Ints, finite


@dataclass(frozen=True)
class Ranking:
    """How n queries rank m answers.

    Attributes:
        ranks: [n] number of wrong answers that score at least as high as the best right one, so 0 is a hit
            at 1 and ties are wrong; m where the query has no right answer.
        right: [n] similarity of the best right answer, -inf where there is none.
        wrong: [n] similarity of the best wrong answer, -inf where there is none.
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
