"""Which captions of a sample are read: the first, or a random one of its rewrites."""

from __future__ import annotations

import random

from open_clip_triplet.counts import Dropped
from open_clip_triplet.shards import read_meta

SAMPLING = ("first", "random")


def choose_captions(
    roles: dict, rng: random.Random, *, sampling: str, negatives: int, keep_first: bool
) -> tuple[list[str], bool]:
    """The positive caption and its hard negatives, ``[y, y'a, y'b, ...]``.

    ``first`` takes ``txt`` and ``neg.txt``; ``random`` draws from the ``captions`` and ``neg_captions``
    of the json member. More than one negative always come from ``neg_captions``. Under ``keep_first``
    ``neg.txt`` stays the first negative, because it is the caption of the negative image.

    Returns:
        The 1 + ``negatives`` captions, and whether negatives had to be used more than once because
        the sample has fewer.

    Raises:
        Dropped: a caption is empty, or not UTF-8.
    """
    meta = read_meta(roles) if sampling == "random" or negatives > 1 else {}
    caption = _text(roles["text"])
    if sampling == "random":
        caption = rng.choice(_strings(meta.get("captions")) or [caption])
    chosen = [caption]
    filled = False
    if negatives:
        first = _text(roles["neg_text"])
        others = [text for text in _strings(meta.get("neg_captions")) if text != first]
        pool = [first, *others]
        if sampling == "random":
            if keep_first:
                rng.shuffle(others)
                pool = [first, *others]
            else:
                rng.shuffle(pool)
        filled = len(pool) < negatives
        chosen += [pool[i % len(pool)] for i in range(negatives)]
    if not all(text.strip() for text in chosen):
        raise Dropped("empty caption")
    return chosen, filled


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise Dropped("unreadable caption") from None


def _strings(value) -> list[str]:
    """The non-empty strings of a list out of an untrusted json member."""
    return (
        [item for item in value if isinstance(item, str) and item.strip()] if isinstance(value, list) else []
    )
