"""Hard negative captions: one or several per caption, by a language model or by rules.

Each answer is checked; a bad one is asked for again with another seed and, failing that, the sample
is dropped and counted by the reason of its last answer. ``neg.txt`` takes the first negative, and
``neg_captions`` in the json all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from open_clip_triplet.tripletdata.backends.textmodels import NoAnswer, add_model_arguments, make_model
from open_clip_triplet.tripletdata.run import options
from open_clip_triplet.tripletdata.run.sample import Sample, Stats
from open_clip_triplet.tripletdata.run.stage import RUNTIME_ONLY, Stage
from open_clip_triplet.tripletdata.run.task import ShardTask

HELP = "write hard negative captions with a language model or rules"

#: how an assistant declines, at the start of its answer
REFUSAL = re.compile(
    r"(i['’]?m |i am )?(very )?(sorry|afraid)\b"
    r"|i (can ?not|can['’]?t|won['’]?t|am unable|am not able)\b"
    r"|as an? (ai|language model)|unfortunately,? i\b|i apologi[sz]e"
    r"|(sure|certainly|of course)[,!. ]|here (is|are) |here['’]?s |i['’]?m providing|please provide",
    re.IGNORECASE,
)

#: what the json of a sample says of its negative image
OF_NEGATIVE_IMAGE = {
    "t2i", "seed", "scores", "similarity", "embedder", "neg_source_key", "neg_source_shard", "category",
    "neg_categories", "changed",
}


class CaptionModel(Protocol):
    """captions -> captions. ``retries``: whether asking again with another attempt can help.

    ``progress`` is set by who asks: ``propose`` may call it with the share of its captions that are done.
    """

    retries: bool

    def open(self, device: str) -> None: ...

    def propose(self, captions: list[str], keys: list[str], count: int, attempt: int) -> list[list]:
        """Up to ``count`` candidates (str or NoAnswer) for each caption; ``keys`` and ``attempt`` seed them."""
        ...


def normal(text: str) -> str:
    """A caption's words alone, lower case: what makes two captions the same.

    >>> normal("A red  dog.") == normal("a red dog")
    True
    """
    return " ".join(re.findall(r"\w+", text.casefold()))


def tidy(answer: str) -> str:
    """An answer without the label and the quotes that chat models put around it.

    >>> tidy(' Output: "A cat on a mat."')
    'A cat on a mat.'
    """
    answer = re.sub(r"^\s*(output|answer)\s*:\s*", "", answer, flags=re.IGNORECASE).strip()
    for left, right in ('""', "''", "“”", "``"):
        if len(answer) > 1 and answer[0] == left and answer[-1] == right and left not in answer[1:-1]:
            answer = answer[1:-1].strip()
    return answer


def overlap(a: set, b: set) -> float:
    """Shared words over all words of two captions, 0 to 1."""
    return len(a & b) / max(len(a | b), 1)


@dataclass
class Checker:
    """Says why an answer cannot stand for a caption.

    Args:
        prompt: its examples' outputs and its opening words must not come back as answers.
    """

    prompt: str = ""

    def __post_init__(self):
        examples = re.findall(r"(?:Input|Output): (.+?)(?= Input:| Output:| Now,|$)", self.prompt)
        self._examples = {normal(example) for example in examples} - {""}
        self._opening = normal(self.prompt.partition("{}")[0])[:40]

    def _echoes(self, words: str, source: str) -> bool:
        """Whether an answer has most of its words from an example, to which its caption gave no cause."""
        mine, theirs = set(words.split()), set(source.split())
        near = [
            example for example in map(set, map(str.split, self._examples)) if overlap(mine, example) >= 0.5
        ]
        return any(overlap(theirs, example) < 0.5 for example in near)

    def fault(self, caption: str, answer: str) -> str | None:
        """The reason to reject ``answer`` (tidied), or None."""
        if not normal(answer):
            return "empty"
        if "\n" in answer or "\r" in answer:
            return "several lines"
        if REFUSAL.match(answer) and not REFUSAL.match(caption):
            return "refusal"
        words, source = normal(answer), normal(caption)
        if words == source:
            return "unchanged"
        if self._echoes(words, source) or (self._opening and self._opening in words):
            return "prompt echo"
        if re.search(r"\b(in|out)put:", answer, re.IGNORECASE) and "put:" not in caption.lower():
            return "prompt echo"
        count, expected = len(words.split()), len(source.split())
        if not expected / 2 - 2 <= count <= expected * 2 + 2 or len(answer) > 4 * len(caption) + 40:
            return "length"
        return None


@dataclass
class Ask:
    """Asks a model for ``count`` accepted, different answers per caption; shared by captions and rewrite."""

    model: Any
    checker: Checker
    count: int = 1
    attempts: int = 3
    longest: int = 1000

    def __call__(self, samples: list[Sample], stats: Stats) -> list[list[str]]:
        """Accepted answers per sample, in order of acceptance; none where it must be dropped (counted)."""
        accepted: list[list[str]] = [[] for _ in samples]
        faults: list[str | None] = [
            "caption too long" if len(s.text) > self.longest else None for s in samples
        ]
        pending = [i for i, fault in enumerate(faults) if fault is None]
        for attempt in range(self.attempts if self.model.retries else 1):
            if attempt:
                stats.count("asked again", len(pending))
            waiting = len(pending) / max(len(samples), 1)
            self.model.progress = lambda share, waiting=waiting: stats.report(1 - waiting + share * waiting)
            answers = self.model.propose(
                [samples[i].text for i in pending], [samples[i].key for i in pending], self.count, attempt
            )
            hopeless = set()
            for i, candidates in zip(pending, answers, strict=True):
                faults[i] = self._take(samples[i].text, candidates, accepted[i])
                if any(isinstance(candidate, NoAnswer) for candidate in candidates):
                    hopeless.add(i)
            pending = [i for i in pending if len(accepted[i]) < self.count and i not in hopeless]
            stats.report(1 - len(pending) / max(len(samples), 1))
            if not pending:
                break
        for taken, fault in zip(accepted, faults):
            if not taken:
                stats.drop(fault or "empty")
            elif len(taken) < self.count:
                stats.count("fewer negatives than asked")
        return accepted

    def _take(self, caption: str, candidates: list, taken: list[str]) -> str | None:
        """Move the good candidates to ``taken``; the last fault met."""
        fault = None if candidates else "no candidate"
        for candidate in candidates:
            if isinstance(candidate, NoAnswer):
                fault = candidate.reason
                continue
            candidate = tidy(candidate)
            problem = self.checker.fault(caption, candidate)
            if problem:
                fault = problem
            elif len(taken) < self.count and normal(candidate) not in map(normal, taken):
                taken.append(candidate)
        return fault


@dataclass
class Captions(Stage):
    """Stage: adds ``neg.txt`` and ``neg_captions``. ``images`` False leaves the images out of its shards."""

    name: ClassVar[str] = "captions"
    model: Any = None
    negatives: int = 1
    attempts: int = 3
    max_chars: int = 1000
    images: bool = True
    quiet: bool = field(default=True, metadata=RUNTIME_ONLY)

    def config(self) -> dict:
        return {**super().config(), "model": self.model.config()}

    def open(self, device: str) -> None:
        self.model.open(device)

    def process(self, task: ShardTask, stats: Stats) -> Iterator[Sample]:
        samples = list(task.samples(stats, images=False))
        ask = Ask(self.model, Checker(self.model.prompt), self.negatives, self.attempts, self.max_chars)
        answers = {s.key: negatives for s, negatives in zip(samples, ask(samples, stats)) if negatives}
        # A second pass brings the images, so that a shard's worth of them is never in memory.
        source = task.samples(Stats()) if self.images else samples
        provenance = self.model.provenance()
        for sample in source:
            if negatives := answers.get(sample.key):
                had_negative = sample.neg_text is not None or sample.neg_image is not None
                if had_negative and sample.neg_text != negatives[0]:  # its image shows another caption
                    sample.neg_image = None
                    sample.meta = {k: v for k, v in sample.meta.items() if k not in OF_NEGATIVE_IMAGE}
                sample.neg_text = negatives[0]
                sample.meta = {**sample.meta, "neg_captions": negatives, **provenance}
                yield sample


def add_arguments(parser) -> None:
    options.add_common(parser)
    add_caption_arguments(parser)


def add_caption_arguments(parser) -> None:
    add_model_arguments(parser, "prompt_negative.txt", rules=True)
    group = parser.add_argument_group("negative captions")
    group.add_argument(
        "--negatives", type=options.positive, default=1, metavar="K", help="negatives per caption (default 1)"
    )
    group.add_argument(
        "--attempts", type=options.positive, default=3, help="times to ask before a sample is dropped (default 3)"
    )
    group.add_argument(
        "--max-caption-chars", type=options.positive, default=1000, help="drop longer captions, counted (default 1000)"
    )


def make_stage(args, *, images: bool = True) -> Captions:
    model = make_model(args, "prompt_negative.txt")
    return Captions(model, args.negatives, args.attempts, args.max_caption_chars, images)
