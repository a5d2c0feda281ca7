"""Which captions of a sample are read: the first, or a random one of its rewrites."""

from __future__ import annotations

import random

from open_clip_triplet.data.counts import Dropped
from open_clip_triplet.errors import MembersMissing
from open_clip_triplet.shards import by_role, first_samples, read_meta

SAMPLING = ("first", "random")
#: a rewriter may have kept fewer captions of one sample, hardly of so many
SAMPLES_LOOKED_AT = 8


def choose_captions(
    roles: dict, rng: random.Random | None, *, sampling: str, negatives: int, keep_first: bool
) -> tuple[list[str], bool]:
    """The positive caption and its hard negatives, ``[y, y'a, y'b, ...]``.

    ``first`` takes ``txt`` and ``neg.txt``; ``random`` draws from the ``captions`` and ``neg_captions``
    of the json member. More than one negative always come from ``neg_captions``. Under ``keep_first``
    ``neg.txt`` stays the first negative, because it is the caption of the negative image. ``rng`` may be
    None for ``first``.

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
        first, *others = pool = _negatives(_text(roles["neg_text"]), meta)
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


def require_negatives(url: str, number: int, *, reader: str) -> None:
    """Check that the first samples of a shard have so many different negative captions, one of them at least.

    Raises:
        MembersMissing: names the shard, and how many were found and wanted.
        ShardError: the shard cannot be read.
    """
    found = 0
    for sample in first_samples(url, SAMPLES_LOOKED_AT):
        roles = by_role(sample)
        if "neg_text" in roles:
            text = roles["neg_text"].decode("utf-8", "replace")
            found = max(found, len(_negatives(text, read_meta(roles))))
    if found < number:
        raise MembersMissing(
            f"{reader} with --neg-captions {number}: the first samples of {url} have at most {found} "
            "different negative captions (neg.txt and neg_captions in json). Build shards with more, or "
            f"use --neg-captions {max(found, 1)}."
        )


def _negatives(first: str, meta: dict) -> list[str]:
    """neg.txt, and those of ``neg_captions`` that differ from it."""
    return [first, *(text for text in _strings(meta.get("neg_captions")) if text != first)]


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
