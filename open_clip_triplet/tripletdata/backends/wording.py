"""What captions share: words, writing system, language. The languages' function words are ``languages.json``."""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from collections import Counter
from importlib import resources


@functools.cache
def _function_words() -> dict[str, list[str]]:
    """Language -> words that it is known by."""
    return json.loads(resources.files(__package__).joinpath("languages.json").read_text(encoding="utf-8"))


def normal(text: str) -> str:
    """A caption's words alone, lower case: what makes two captions the same.

    >>> normal("A red  dog.") == normal("a red dog")
    True
    """
    return " ".join(re.findall(r"[^\W_]+", text.casefold()))


def overlap(a: set, b: set) -> float:
    """Shared words over all words of two captions, 0 to 1."""
    return len(a & b) / max(len(a | b), 1)


def scripts(text: str) -> set[str]:
    """Writing systems of a text, by the names of its letters; one that has few letters does not count.

    >>> sorted(scripts("A dog in Москва"))
    ['CYRILLIC', 'LATIN']
    """
    names = (unicodedata.name(letter, "").partition(" ")[0] for letter in text if letter.isalpha())
    counts = Counter(names)
    return {name for name, number in counts.items() if number > 2 and number >= 0.1 * sum(counts.values())}


def other_language(words: str, source: str) -> bool:
    """Whether the function words of an answer are of a language that its caption is not in."""
    mine, theirs, lists = Counter(words.split()), set(source.split()), _function_words()
    counts = {name: len(theirs.intersection(listed)) for name, listed in lists.items()}
    expected = {name for name, count in counts.items() if count and count >= max(counts.values()) - 1}
    if max(counts.values()) < 2:
        expected.add("english")
    own = max(sum(mine[word] for word in lists[name]) for name in expected)
    foreign = max(
        (sum(mine[w] for w in listed if w not in theirs) for name, listed in lists.items() if name not in expected),
        default=0,
    )
    return foreign >= 2 and foreign > own


def is_foreign(text: str) -> bool:
    """Whether a text is in another language than English, as far as its function words tell."""
    return scripts(text) - {"LATIN"} != set() or other_language(normal(text), "")
