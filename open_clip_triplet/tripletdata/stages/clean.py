"""Takes off an answer what chat models put around a caption: reasoning, chat tokens, labels, markdown, quotes, notes.

The phrases are ``answers.json`` beside this file.
"""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from importlib import resources

from open_clip_triplet.tripletdata.backends.language import Unfinished
from open_clip_triplet.tripletdata.backends.wording import normal, overlap

QUOTES = ('""', "''", "“”", "‘’", "``", "«»", "„“", "「」")
#: words shared by an answer and a caption, over all words of both, from which one is like the other
NEAR = 0.5


@functools.cache
def phrases() -> dict:
    """The lists of ``answers.json``, by name."""
    return json.loads(resources.files(__package__).joinpath("answers.json").read_text(encoding="utf-8"))


def _any(words) -> str:
    return "|".join(re.escape(phrase) for phrase in sorted(words, key=len, reverse=True))


@functools.cache
def _patterns() -> dict[str, re.Pattern]:
    lists = phrases()
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
        line = _unquoted(_without_symbols(re.sub(r"(\*\*|__|``?)(.+?)\1", r"\2", line).strip()))
        for name in ("list", "label", "preamble", "here", "note"):
            if not patterns[name].search(caption):  # a caption may look like wrapping itself
                line = patterns[name].sub("", line, count=1).strip()
    if " -> " in line or " → " in line:
        left, _, right = re.split(r"(->|→)", line, maxsplit=1)
        line = right.strip() if overlap(set(normal(left).split()), set(normal(caption).split())) > NEAR else line
    line = re.split(r"\s+2[.)]\s+(?=[A-Z])", line)[0] if not re.search(r"\b2[.)]", caption) else line
    return "" if line.endswith(":") else line.strip("*_ ") if "*" in line or line[:1] == "_" else line


def _without_symbols(line: str) -> str:
    """Without the emoji that it begins or ends with."""
    def symbol(letter: str) -> bool:
        return unicodedata.category(letter) in ("So", "Sk", "Cf", "Cn", "Mn")

    while line and symbol(line[0]):
        line = line[1:].lstrip()
    while line and symbol(line[-1]):
        line = line[:-1].rstrip()
    return line


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


def refuses(text: str) -> bool:
    """Whether an answer begins as a refusal does."""
    return bool(_patterns()["refusal"].match(text.replace("’", "'")))
