"""What a language model's answer is worth: the caption in it, or the reason to reject it.

:func:`clean` takes off what chat models put around a caption: reasoning, chat tokens, labels, markdown,
quotes, notes. :class:`Checker` rejects what is left if it is no hard negative of the source caption.
The word lists are ``answers.json`` and ``languages.json`` beside this file; the cases are ``tests/answers.yaml``.
"""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from importlib import resources

from open_clip_triplet.tripletdata.backends.language import Unfinished

QUOTES = ('""', "''", "“”", "‘’", "``", "«»", "„“", "「」")
#: words shared by an answer and a caption, over all words of both, from which one is like the other
NEAR = 0.5


class Negative(str):
    """An accepted negative caption, with what else is known of it.

    Args:
        category: of the edit, where who made it knows; empty otherwise.
        instruction: to an image editor, that makes it from the source caption; empty where none was given.
    """

    category: str
    instruction: str

    def __new__(cls, text: str, *, category: str = "", instruction: str = "") -> Negative:
        negative = super().__new__(cls, text)
        negative.category, negative.instruction = category, instruction
        return negative


@functools.cache
def word_list(name: str) -> dict:
    """A word list of the package, ``stages/NAME.json``."""
    path = resources.files("open_clip_triplet.tripletdata.stages").joinpath(f"{name}.json")
    return json.loads(path.read_text(encoding="utf-8"))


def normal(text: str) -> str:
    """A caption's words alone, lower case: what makes two captions the same.

    >>> normal("A red  dog.") == normal("a red dog")
    True
    """
    return " ".join(re.findall(r"[^\W_]+", text.casefold()))


def overlap(a: set, b: set) -> float:
    """Shared words over all words of two captions, 0 to 1."""
    return len(a & b) / max(len(a | b), 1)


def _any(phrases) -> str:
    return "|".join(re.escape(phrase) for phrase in sorted(phrases, key=len, reverse=True))


@functools.cache
def _patterns() -> dict[str, re.Pattern]:
    lists = word_list("answers")
    adjectives, nouns = _any(lists["label_adjectives"]), _any(lists["labels"])
    label = rf"(?:(?:the|your|here(?:['’]s| is) (?:the|a|an|your)|an?)\s+)?(?:(?:{adjectives})\s+)*(?:{nouns})s?"
    tail = r"(?:\s+(?:of|for) (?:the|this|an) image)?(?:\s+(?:is|would be|could be))?"
    openings = _any(lists["note_openings"])
    compile = functools.partial(re.compile, flags=re.IGNORECASE)
    return {
        "start": compile(rf"^\s*(?:{_any(lists['start_tokens'])})\s*"),
        "end": compile(_any(lists["end_tokens"])),
        "role": compile(r"^\s*(?:assistant|model)\s*\n"),
        "label": compile(rf"^{label}{tail}\s*:\s*|^{label}$"),
        "preamble": compile(
            rf"^(?:sure|certainly|of course|absolutely|okay|ok|great|yes)\b(?: thing)?[!,.:]?\s*"
            rf"(?:(?:here(?:['’]s| is| are)|the|this is)\b[^:\n]*\b(?:{nouns}|version|one|sentence)s?\b[^:\n]*:\s*)?"
        ),
        "here": compile(
            rf"^(?:here(?:['’]s| is| are)|the following is|this is)\b[^:\n]*\b"
            rf"(?:{nouns}|version|one|sentence|text|caption)s?\b[^:\n]*:\s*"
        ),
        "list": compile(r"^(?:\(?\d{1,2}[.):]\s+|[-*•–>]\s+|#{1,6}\s+|\(?[ab][.)]\s+)"),
        "note": compile(
            rf"\s*(?:\((?:{_any(lists['notes'])}|{openings}|changed|replac|modif|now )[^)]*\)?\s*$"
            rf"|(?:[\[*_(]*\b(?:{_any(lists['notes'])})\b[*_]*\s*:.*)$"
            rf"|(?<=[.!?\"'”])\s+(?:{openings}).*$)"
        ),
        "refusal": compile(rf"^[\W_]*(?:{_any(lists['refusals'])})"),
    }


def clean(answer: str, caption: str = "") -> str:
    """The caption in an answer: one line, or empty where there is none.

    Args:
        answer: as the model gave it. Of an ``Unfinished`` one, the last line is not whole and is left out.
        caption: the one that was asked about; an echo of it before the answer is taken off.

    >>> clean('<think>a cat?</think>**Output:** "A cat on a mat."\\n\\nNote: the dog became a cat.')
    'A cat on a mat.'
    """
    if isinstance(answer, Unfinished):
        answer = answer.rpartition("\n")[0]
    text = _strip_tokens(_strip_reasoning(answer)).replace("\x00", "")
    plain = _json_value(text) or text
    lines = [_clean_line(line, caption) for line in _joined(plain.splitlines())]
    lines = [line for line in lines if line and normal(line)]
    if len(lines) > 1 and normal(lines[0]) == normal(caption):
        lines = lines[1:]  # the input, repeated above the answer
    return lines[0] if lines else ""


def split_instruction(answer: str) -> tuple[str, str]:
    """The answer and the instruction that follows it after ``Edit:``; empty where there is none.

    >>> split_instruction("A blue dog. Edit: Make the dog blue.")
    ('A blue dog.', 'Make the dog blue.')
    """
    marker = re.search(r"\s*\**\b(?:edit|instruction)\b\**\s*:\**\s*", answer, re.IGNORECASE)
    if not marker:
        return answer, ""
    rest = _strip_tokens(answer[marker.end() :]).strip()
    edit = "" if isinstance(answer, Unfinished) else rest.partition("\n")[0].strip(' "*')
    return answer[: marker.start()], edit


def _strip_reasoning(text: str) -> str:
    """Without ``<think>`` blocks; a block that never ends takes all of the rest."""
    names = r"(?:think|thinking|reasoning|thought|analysis)"
    text = re.sub(rf"<{names}>.*?</{names}>", "", text, flags=re.I | re.S)
    text = re.split(rf"</{names}>", text, flags=re.I)[-1]  # opened by the chat template
    return re.split(rf"<{names}>", text, flags=re.I)[0]


def _strip_tokens(text: str) -> str:
    """Without chat tokens; what follows an end token is another turn."""
    patterns = _patterns()
    while (shorter := patterns["start"].sub("", text, count=1)) != text:
        text = shorter
    text = patterns["role"].sub("", text)
    first = next((part for part in patterns["end"].split(text) if part.strip()), "")
    return patterns["start"].sub("", first)


def _json_value(text: str) -> str | None:
    """The text of an answer like ``{"output": "A cat"}``."""
    text = re.sub(r"^\s*```(?:json)?\s*|\s*```\s*$", "", text)
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    values = list(value.values()) if isinstance(value, dict) else value
    return values[-1] if isinstance(values, list) and values and isinstance(values[-1], str) else None


def _joined(lines: list[str]) -> list[str]:
    """Lines, with one that goes on in lower case on the next put together again."""
    joined: list[str] = []
    for line in lines:
        before = joined[-1].rstrip() if joined else ""
        wrapped = re.search(r"[\w,]$", before) and re.match(r"[a-z]", line) and len(before.split()) > 2
        if wrapped:
            joined[-1] = f"{before} {line}"
        else:
            joined.append(line)
    return joined


def _clean_line(line: str, caption: str) -> str:
    patterns = _patterns()
    line = " ".join(line.split())
    if line.startswith("```") or re.fullmatch(r"[-=_*#~ ]+", line):
        return ""
    if "put:" not in caption.lower():
        echo = re.match(r"input\s*:.*?\boutput\s*:\s*(.+)$", line, re.I)
        if echo:
            line = echo[1]
        elif re.match(r"input\s*:", line, re.I):
            return ""
        line = re.split(r"\s*\binput\s*:", line, flags=re.I)[0]
    before = None
    while line != before:
        before = line
        line = _unquoted(re.sub(r"(\*\*|__|``?)(.+?)\1", r"\2", line).strip())
        for name in ("list", "label", "preamble", "here", "note"):
            if not patterns[name].search(caption):  # a caption may look like wrapping itself
                line = patterns[name].sub("", line, count=1).strip()
    if " -> " in line or " → " in line:
        left, _, right = re.split(r"(->|→)", line, maxsplit=1)
        line = right.strip() if overlap(set(normal(left).split()), set(normal(caption).split())) > NEAR else line
    line = re.split(r"\s+2[.)]\s+(?=[A-Z])", line)[0] if not re.search(r"\b2[.)]", caption) else line
    return "" if line.endswith(":") else line.strip("*_ ") if "*" in line or line[:1] == "_" else line


def _unquoted(line: str) -> str:
    """``"A cat."``, ``"A cat".`` and ``"A cat`` without their quotes."""
    body = line.rstrip(".!?")
    for left, right in map(tuple, QUOTES):
        if not line.startswith(left):
            continue
        for text, ending in ((line, ""), (body, line[len(body) :])):
            inner = text[1:-1]
            if len(text) > 1 and text.endswith(right) and left not in inner and right not in inner:
                return (inner.rstrip() + ending).strip()
        if left == '"' and line.count(left) == 1:
            return line[1:].strip()
    return line


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
        if _refuses(answer) and not _refuses(caption):
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
        if _other_language(words, source):
            return "another language"
        if not self.paraphrases and paraphrase(caption, answer):
            return "paraphrase"
        return None

    def _echoes(self, words: str, source: str) -> bool:
        """Whether an answer has most of its words from an example, to which its caption gave no cause."""
        mine, theirs = set(words.split()), set(source.split())
        near = [e for e in map(set, map(str.split, self._examples)) if overlap(mine, e) >= NEAR]
        return any(overlap(theirs, example) < NEAR for example in near)


def _refuses(text: str) -> bool:
    return bool(_patterns()["refusal"].match(text.replace("’", "'")))


def scripts(text: str) -> set[str]:
    """Writing systems of a text, by the names of its letters; one that has few letters does not count.

    >>> sorted(scripts("A dog in Москва"))
    ['CYRILLIC', 'LATIN']
    """
    names = (unicodedata.name(letter, "").partition(" ")[0] for letter in text if letter.isalpha())
    counts = Counter(names)
    return {name for name, number in counts.items() if number > 2 and number >= 0.1 * sum(counts.values())}


def _other_language(words: str, source: str) -> bool:
    """Whether the function words of an answer are of a language that its caption is not in."""
    mine, theirs, lists = Counter(words.split()), set(source.split()), word_list("languages")
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
    return scripts(text) - {"LATIN"} != set() or _other_language(normal(text), "")


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


def _content(text: str) -> list[str]:
    lists = word_list("answers")
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
