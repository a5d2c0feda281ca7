"""What a language model's answer is worth: none, or the reason to reject it as a hard negative of its caption.

:func:`clean.clean` has taken off what stood around it. The cases are ``tests/answers.yaml``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from open_clip_triplet.tripletdata.backends.wording import normal, other_language, overlap, scripts
from open_clip_triplet.tripletdata.stages.clean import NEAR, phrases, refuses

#: content words from which a caption must share one with its negative
FEW = 4


@dataclass
class Checker:
    """Says why an answer cannot stand for a caption.

    Args:
        prompt: its examples' outputs and its opening words must not come back as answers.
        paraphrases: whether an answer that says the same in other words is good (rewrites) or not.
        instructions: whether the prompt asks for an instruction after the caption.
    """

    prompt: str = ""
    paraphrases: bool = False
    instructions: bool = False

    def __post_init__(self):
        examples = re.findall(r"(?:Input|Output): (.+?)(?= Input:| Output:| Edit:| Now,|$)", self.prompt)
        self._examples = {normal(example) for example in examples} - {""}
        self._opening = normal(self.prompt.partition("{}")[0])[:40]

    def fault(self, caption: str, answer: str) -> str | None:
        """The reason to reject ``answer`` (cleaned), or None."""
        words, source = normal(answer), normal(caption)
        if not words:
            return "empty"
        if "\n" in answer or "\r" in answer:
            return "several lines"
        if refuses(answer) and not refuses(caption):
            return "refusal"
        if words == source:
            return "unchanged"
        if self._echoes(words, source) or (self._opening and self._opening in words):
            return "prompt echo"
        if re.search(r"\b(in|out)put:", answer, re.IGNORECASE) and "put:" not in caption.lower():
            return "prompt echo"
        count, expected = len(words.split()), len(source.split())
        if not expected / 2 - 2 <= count <= expected * 2 + 2 or len(answer) > 4 * len(caption) + 40:
            return "length"
        if not scripts(answer) <= scripts(caption):
            return "another script"
        if other_language(words, source):
            return "another language"
        if not self.paraphrases and paraphrase(caption, answer):
            return "paraphrase"
        if not self.paraphrases and _unrelated(caption, answer):
            return "unrelated"
        return None

    def _echoes(self, words: str, source: str) -> bool:
        """Whether an answer has most of its words from an example, to which its caption gave no cause."""
        mine, theirs = set(words.split()), set(source.split())
        near = [e for e in map(set, map(str.split, self._examples)) if overlap(mine, e) >= NEAR]
        return any(overlap(theirs, example) < NEAR for example in near)


def paraphrase(caption: str, answer: str) -> bool:
    """Whether two captions say the same of an image: the same content words and numbers, in an order
    that differs at most by which half comes first (or by the passive voice).

    >>> paraphrase("A dog is running on the beach.", "On the beach a dog runs")
    True
    >>> paraphrase("A dog chases a cat", "A cat chases a dog")
    False
    """
    if _other_number(caption, answer):
        return False
    ours, theirs = _content(caption), _content(answer)
    passive = [("by" in words) for words in (ours, theirs)]
    if passive[0] != passive[1]:
        return sorted(set(ours) - {"by"}) == sorted(set(theirs) - {"by"})
    if len(ours) != len(theirs) or not ours:
        return False
    return any(theirs == ours[i:] + ours[:i] for i in range(len(ours)))


def _unrelated(caption: str, answer: str) -> bool:
    """Whether an answer has none of a caption's content words, of which there are ``FEW`` at least: no edit of it.

    >>> _unrelated("Two dogs swim in a lake.", "I am sure that I can describe the image.")
    True
    >>> _unrelated("Two dogs swim.", "A cat sleeps.")
    False
    """
    ours = set(_content(caption))
    return len(ours) >= FEW and not ours & set(_content(answer))


def _content(text: str) -> list[str]:
    lists = phrases()
    function, numbers = set(lists["function_words"]), lists["numbers"]
    words = re.findall(r"\w+", re.sub(r"['’]s\b", "", text.casefold()))
    return [numbers.get(word) or _stem(word) for word in words if word not in function]


def _stem(word: str) -> str:
    """A word without its inflection, well enough to tell a word from its other forms.

    >>> _stem("running") == _stem("runs") == _stem("run"), _stem("riding") == _stem("rides")
    (True, True)
    """
    for ending in ("ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            word = word[: -len(ending)]
            break
    if len(word) > 3 and word[-1] == word[-2]:
        word = word[:-1]
    return word.rstrip("e") if len(word) > 3 else word


def _other_number(caption: str, answer: str) -> bool:
    """Whether one of two captions has a plural where the other has "a" with the singular."""
    ours, theirs = normal(caption).split(), normal(answer).split()
    articles = [sum(word in ("a", "an", "one", "single") for word in words) for words in (ours, theirs)]
    if articles[0] == articles[1]:
        return False
    fewer, more = (ours, theirs) if articles[0] < articles[1] else (theirs, ours)
    return any(word + ending in fewer for word in set(more) - set(fewer) for ending in ("s", "es"))
