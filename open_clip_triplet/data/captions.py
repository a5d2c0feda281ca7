"""Which captions of a sample are read: the first, or a random one of its rewrites."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from open_clip_triplet.data.counts import Dropped
from open_clip_triplet.shards import read_meta


@dataclass(frozen=True)
class CaptionChoice:
    """Chooses the positive caption of a sample and its hard negatives, ``[y, y'a, y'b, ...]``, and what follows.

    sampling: ``first`` takes ``txt`` and ``neg.txt``; ``random`` draws from the ``captions`` and
    ``neg_captions`` of the json member. negatives: K; more than one always come from ``neg_captions``.
    json_keys: OpenCLIP's ``--json-text-key``: the positive caption is the first of these json fields that is
    not empty, or under json_probs one drawn with these weights. paraphrases: other ``captions`` that follow.
    units: M of json's ``units``, each ``{"text": ..., "neg_text": ...}``, that follow them as two rows each.
    """

    sampling: str = "first"
    negatives: int = 0
    json_keys: tuple[str, ...] = ()
    json_probs: tuple[float, ...] | None = None
    paraphrases: int = 0
    units: int = 0

    @property
    def rows(self) -> int:
        """Captions per sample."""
        return 1 + self.negatives + self.paraphrases + 2 * self.units

    @property
    def is_random(self) -> bool:
        return self.sampling == "random" or self.json_probs is not None

    @property
    def reads_meta(self) -> bool:
        more = self.negatives > 1 or self.paraphrases or self.units or self.json_keys
        return self.sampling == "random" or bool(more)

    def __call__(self, sample: dict, rng: Any, *, keep_first: bool) -> tuple[list[str], bool]:
        """The ``rows`` captions of a sample under field names.

        Args:
            rng: a random.Random; may be None where nothing is random.
            keep_first: ``neg.txt`` stays the first negative, because it is the caption of the negative image.

        Returns:
            The captions, and whether some had to be used more than once because the sample has fewer.

        Raises:
            Dropped: a caption is empty, or not UTF-8; units are wanted and there are none.
        """
        meta = read_meta(sample) if self.reads_meta else {}
        caption = self._from_json(meta, rng) if self.json_keys else _text(sample["text"])
        if self.sampling == "random":
            caption = rng.choice(_strings(meta.get("captions")) or [caption])
        chosen, filled = [caption], False
        if self.negatives:
            first, *others = pool = negative_captions(_text(sample["neg_text"]), meta)
            if self.sampling == "random":
                if keep_first:
                    rng.shuffle(others)
                    pool = [first, *others]
                else:
                    rng.shuffle(pool)
            filled = len(pool) < self.negatives
            chosen += [pool[i % len(pool)] for i in range(self.negatives)]
        if self.paraphrases:
            others = [text for text in _strings(meta.get("captions")) if text != caption]
            filled |= len(others) < self.paraphrases
            chosen += self._some(others or [caption], self.paraphrases, rng)
        if self.units:
            units = _units(meta.get("units"))
            filled |= len(units) < self.units
            chosen += [text for unit in self._some(units, self.units, rng) for text in unit]
        if not all(text.strip() for text in chosen):
            raise Dropped("empty caption")
        return chosen, filled

    def _some(self, pool: list, number: int, rng: random.Random) -> list:
        """So many of a pool, the first or random ones; where it has fewer, some again."""
        if self.sampling == "random":
            pool = rng.sample(pool, len(pool))
        return [pool[i % len(pool)] for i in range(number)]

    def _from_json(self, meta: dict, rng: random.Random) -> str:
        keys = list(self.json_keys)
        if self.json_probs is not None:
            weights = dict(zip(keys, self.json_probs))  # keys without one come last, as in OpenCLIP
            drawn = [key for key in keys if weights.get(key, 0) > 0]
            drawn.sort(key=lambda key: rng.random() ** (1 / weights[key]), reverse=True)
            keys = drawn + [key for key in keys if key not in drawn]
        return next((text.strip() for key in keys for text in _strings([meta.get(key)])), "")


def negative_captions(first: str, meta: dict) -> list[str]:
    """neg.txt, and those of ``neg_captions`` that differ from it."""
    return [first, *(text for text in _strings(meta.get("neg_captions")) if text != first)]


def _units(value) -> list[tuple[str, str]]:
    """Text and hard negative of the units in an untrusted json member."""
    found = []
    for unit in value if isinstance(value, list) else []:
        texts = _strings([unit.get("text"), unit.get("neg_text")]) if isinstance(unit, dict) else []
        if len(texts) == 2:
            found.append((texts[0], texts[1]))
    if not found:
        raise Dropped("no units")
    return found


def _text(data: bytes | str) -> str:
    try:
        return data if isinstance(data, str) else data.decode("utf-8")  # a data stage may give either
    except UnicodeDecodeError:
        raise Dropped("unreadable caption") from None


def _strings(value) -> list[str]:
    """The non-empty strings of a list out of an untrusted json member."""
    return [item for item in value if isinstance(item, str) and item.strip()] if isinstance(value, list) else []
