"""NegCLIP's rule-made negatives: attribute, relation, object and action, up to one of each per caption.

spaCy tags and parses the caption. Two different words of the category are swapped where that changes
what the caption says; else one is replaced by its opposite or by another word of a short list
(``rules.json``). Text that is not touched keeps its exact spelling; a caption that spaCy's English model
cannot parse is left alone.

Reference: Yuksekgonul et al., ICLR 2023, arXiv:2210.01936; four per caption as in arXiv:2411.02545.
"""

from __future__ import annotations

import functools
import json
import random
import re
from dataclasses import dataclass
from importlib import resources

from open_clip_triplet.tripletdata.backends.language import Negative, Progress, unreported
from open_clip_triplet.tripletdata.backends.parser import load_spacy
from open_clip_triplet.tripletdata.backends.wording import is_foreign
from open_clip_triplet.tripletdata.run.stage import sample_seed

NOUNS = ("NOUN", "PROPN")
VERB_TAGS = ("VBG", "VBZ", "VBP", "VB", "VBD", "VBN")

Edit = tuple[int, int, str]


@functools.cache
def lists() -> dict:
    """The word lists of ``rules.json``: groups of attributes, relations and their opposites, actions."""
    path = resources.files("open_clip_triplet.tripletdata.backends").joinpath("rules.json")
    return json.loads(path.read_text(encoding="utf-8"))


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
    ) -> list[list]:
        documents = self._nlp.pipe(captions, batch_size=256)
        answers = []
        for number, (key, document) in enumerate(zip(keys, documents, strict=True), 1):
            negatives = self.negatives(document, random.Random(sample_seed(self.seed, key)))
            order = [Negative(text, category=category) for category, text in negatives.items()]
            # shuffled, so that K=1 is not one category only
            random.Random(sample_seed(self.seed, key, 1)).shuffle(order)
            answers.append(order[:count])
            progress(number / len(captions))
        return answers

    def negatives(self, document, rng: random.Random) -> dict[str, str]:
        """Category -> negative caption of a parsed caption; categories that do not apply are left out."""
        if not _parsed(document):
            return {}
        found = {}
        for category in RULES:
            if edits := RULES[category](document, rng):
                counts = {new.lower() for *_, new in edits} <= set(lists()["numbers"])
                found["count" if counts else category] = _apply(document.text, edits)
        return found


def _parsed(document) -> bool:
    """Whether spaCy's English model made sense of a caption."""
    words = [token for token in document if token.is_alpha]
    unknown = sum(token.pos_ in ("X", "SYM", "PUNCT", "INTJ") for token in words)
    if not words or unknown > 0.3 * len(words) or not any(t.pos_ in (*NOUNS, "VERB") for t in words):
        return False
    return not is_foreign(document.text)


def _whole(token) -> bool:
    """Whether a token is a word by itself, not a part of a hyphenated one or a number."""
    text, end = token.doc.text, token.idx + len(token.text)
    return token.is_alpha and text[token.idx - 1 : token.idx] not in ("-", "'") and text[end : end + 1] != "-"


def _attribute(document, rng) -> list[Edit]:
    words = [t for t in document if t.pos_ == "ADJ" and t.dep_ == "amod" and _whole(t) and not t.conjuncts]
    return _swap(words, rng, lambda a, b: a.head.lemma_ != b.head.lemma_) or _replace(document, rng)


def _replace(document, rng) -> list[Edit]:
    choices = [
        (token, sorted(set(group) - {token.text.lower()}))
        for token in document
        if token.pos_ in ("ADJ", "NUM", *NOUNS) and _whole(token)
        for group in lists()["attributes"]
        if token.text.lower() in group
    ]
    if not choices:
        return []
    token, others = rng.choice(choices)
    return [_edit(token, rng.choice(others))]


def _object(document, rng) -> list[Edit]:
    roots = [chunk.root for chunk in document.noun_chunks if chunk.root.pos_ in NOUNS]
    roots = [t for t in roots if _whole(t) and t.lemma_.lower() not in lists()["fixed_nouns"]]
    roots = [t for t in roots if not any(child.dep_ == "compound" for child in t.children)]

    def exchangeable(a, b) -> bool:
        between = a.doc.text[a.idx + len(a.text) : b.idx].lower()
        between = re.sub(r"\b(a|an|the|his|her|their|its|some|another)\b|[^\w ]", " ", between)
        symmetric = " ".join(between.split()) in lists()["symmetric"]
        return a.tag_ == b.tag_ and b not in a.conjuncts and not symmetric

    return _swap(roots, rng, exchangeable)


def _action(document, rng) -> list[Edit]:
    verbs = [token for token in document if token.pos_ == "VERB" and token.tag_ in VERB_TAGS and _whole(token)]
    verbs = [verb for verb in verbs if not any(child.dep_ == "prt" for child in verb.children)]
    for tag in dict.fromkeys(verb.tag_ for verb in verbs):
        same = [verb for verb in verbs if verb.tag_ == tag]
        if edits := _swap(same, rng, lambda a, b: _takes(a) == _takes(b) and b not in a.conjuncts):
            return edits
    choices = [(verb, words) for verb in verbs if (words := _actions_like(verb))]
    if not choices:
        return []
    verb, words = rng.choice(choices)
    return [_edit(verb, rng.choice(words))]


def _takes(verb) -> bool:
    """Whether a verb has an object here."""
    return any(child.dep_ in ("dobj", "obj") for child in verb.children)


def _actions_like(verb) -> list[str]:
    kind = "transitive" if _takes(verb) else "actions"
    return [word for word in lists()[kind].get(verb.tag_, ()) if word != verb.text.lower()]


@functools.cache
def _relation_pattern() -> re.Pattern:
    phrases = "|".join(sorted(map(re.escape, lists()["relations"]), key=len, reverse=True))
    return re.compile(rf"(?<![\w'-])({phrases})(?![\w-])", re.I)


def _relation(document, rng) -> list[Edit]:
    starts = {token.idx: token for token in document}
    matches = []
    for match in _relation_pattern().finditer(document.text):
        token = starts.get(match.start())
        if token is not None and token.dep_ != "prt" and token.pos_ != "VERB":
            matches.append(match)
    if not matches:
        return []
    # A spatial phrase makes a clearer negative than "in" or "with"; those only where nothing else is there.
    strong = [m for m in matches if m[0].lower() not in lists()["weak_relations"]]
    match = rng.choice(strong or matches)
    return [(match.start(), match.end(), _like(match[0], lists()["relations"][match[0].lower()]))]


def _swap(tokens, rng, allowed) -> list[Edit]:
    """Swap two of ``tokens`` that are different words, of which ``allowed`` says that it means something."""
    pairs = [
        (a, b)
        for i, a in enumerate(tokens)
        for b in tokens[i + 1 :]
        if a.lemma_.lower() != b.lemma_.lower() and allowed(a, b)
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
    """``text`` with the edits made, "a" and "an" corrected where the next word now starts otherwise."""
    for start, end, new in sorted(edits, reverse=True):
        vowel = re.match(r"(?!uni|use|eu|one\b|once)[aeiou]|hour|honest|heir", new, re.I)
        text = re.sub(r"\b([Aa])n?(\s+)$", r"\g<1>n\2" if vowel else r"\1\2", text[:start]) + new + text[end:]
    return text


#: category -> edits of a parsed caption; none where it does not apply
RULES = {"attribute": _attribute, "relation": _relation, "object": _object, "action": _action}
