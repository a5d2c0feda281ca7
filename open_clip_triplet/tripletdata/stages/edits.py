"""What a negative caption changes: the words that differ, the category of the edit, an instruction to make it.

Categories: object, attribute, relation, count, action, other; by the parts of speech of the changed words.
"""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

from open_clip_triplet.tripletdata.backends.parser import load_spacy
from open_clip_triplet.tripletdata.backends.rules import lists

CATEGORIES = ("object", "attribute", "relation", "count", "action", "other")
#: spaCy's coarse part of speech -> category
PARTS = {
    "NOUN": "object", "PROPN": "object", "PRON": "object", "ADJ": "attribute", "ADV": "attribute",
    "ADP": "relation", "SCONJ": "relation", "NUM": "count", "VERB": "action",
}
QUANTITIES = {"many", "several", "few", "some", "all", "both", "no", "single", "pair", "couple", "dozen", "group"}
SPATIAL = {
    "left", "right", "front", "top", "bottom", "behind", "above", "below", "under", "over", "near", "far",
    "inside", "outside", "beside", "next", "away", "between", "around", "through", "up", "down",
}


def changed(old: Sequence[str], new: Sequence[str]) -> Iterator[tuple[range, range]]:
    """Positions of the words that differ, in both: an edit each, in order.

    >>> [(list(a), list(b)) for a, b in changed("a red dog".split(), "a blue dog".split())]
    [([1], [1])]
    """
    for kind, a, b, c, d in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind != "equal":
            yield range(a, b), range(c, d)


def instruction(caption: str, negative: str) -> str:
    """An instruction that turns an image of ``caption`` into one of ``negative``, from the words that differ.

    >>> instruction("A red dog on a mat.", "A blue dog on a mat.")
    'change "red dog" to "blue dog"'
    """
    old, new = caption.rstrip(".!? ").split(), negative.rstrip(".!? ").split()
    edits = list(changed([word.lower() for word in old], [word.lower() for word in new]))
    if not edits or len(edits) > 3:
        return f"make it a picture of: {negative.strip()}"
    parts = []
    for before, after in edits:
        # A word of context: of "blue" alone nobody can tell what is to be blue.
        more = 1 if before.stop < len(old) and after.stop < len(new) else 0
        was, becomes = old[before.start : before.stop + more], new[after.start : after.stop + more]
        if was and becomes:
            parts.append(f'change "{" ".join(was)}" to "{" ".join(becomes)}"')
        else:
            parts.append(f'remove "{" ".join(was)}"' if was else f'add "{" ".join(becomes)}"')
    return ", ".join(parts)


class Categories:
    """Edit categories of pairs of captions, by spaCy's parse of both.

    Raises:
        PipelineError: spaCy or its English model is not installed.
    """

    def __init__(self):
        self._nlp, self._turn = load_spacy(disable=["ner"]), threading.Lock()

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[str]:
        """The category of each (caption, negative caption)."""
        texts = [text for pair in pairs for text in pair]
        with self._turn:
            documents = iter(self._nlp.pipe(texts, batch_size=256))
            return [category(old, new) for old, new in zip(documents, documents, strict=True)]


def category(old, new) -> str:
    """The category of most of the words that differ between two parsed captions."""
    counts: Counter = Counter()
    before, after = [[token.lower_ for token in document] for document in (old, new)]
    for a, b in changed(before, after):
        was, becomes = [old[i] for i in a], [new[i] for i in b]
        if _only_number_differs(was, becomes):
            counts["count"] += 2
            continue
        counts.update(_category(token) for token in (*was, *becomes) if not token.is_punct)
    counts.pop(None, None)
    return max(CATEGORIES, key=lambda name: (counts[name], -CATEGORIES.index(name))) if counts else "other"


def _category(token) -> str | None:
    """None for words that say nothing of an image by themselves (articles, auxiliaries)."""
    if token.lower_ in QUANTITIES:
        return "count"
    if token.lower_ in SPATIAL:
        return "relation"
    if token.pos_ in ("NOUN", "PROPN") and (token.dep_ == "compound" or token.lower_ in _attributes()):
        return "attribute"
    return PARTS.get(token.pos_)


@functools.cache
def _attributes() -> frozenset[str]:
    """Words of attributes that spaCy may take for nouns ("a man in blue")."""
    return frozenset(word for group in lists()["attributes"] for word in group)


def _only_number_differs(was: list, becomes: list) -> bool:
    """Whether an edit is like "a dog" to "dogs"."""
    nouns = [[token for token in part if token.pos_ in ("NOUN", "PROPN")] for part in (was, becomes)]
    if not (nouns[0] and nouns[1]):
        return False
    lemmas = [[token.lemma_.lower() for token in part] for part in nouns]
    return lemmas[0] == lemmas[1] and [t.tag_ for t in nouns[0]] != [t.tag_ for t in nouns[1]]
