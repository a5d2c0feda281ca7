"""Hard negative captions: one or several per caption, by a language model or by rules.

Each answer is checked; a bad one is asked for again with another seed and, failing that, the sample
is dropped and counted by the reason of its last answer. ``neg.txt`` takes the first negative, and
``neg_captions`` in the json all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from open_clip_triplet.tripletdata.backends.factory import add_model_arguments, make_model
from open_clip_triplet.tripletdata.backends.language import Negative, NoAnswer, Progress, Unfinished
from open_clip_triplet.tripletdata.backends.parser import spacy_model
from open_clip_triplet.tripletdata.backends.wording import normal
from open_clip_triplet.tripletdata.run import options
from open_clip_triplet.tripletdata.run.sample import Sample, Stats
from open_clip_triplet.tripletdata.run.stage import Stage
from open_clip_triplet.tripletdata.run.task import ShardTask
from open_clip_triplet.tripletdata.stages.answers import Checker
from open_clip_triplet.tripletdata.stages.clean import clean, split_instruction
from open_clip_triplet.tripletdata.stages.edits import Categories, instruction

HELP = "write hard negative captions with a language model or rules"

#: share of a shard's progress that a round of answers is, before it is known how many are asked for again
FIRST_ANSWERS = 0.8
#: what the json of a sample says of its negative image
OF_NEGATIVE_IMAGE = {
    "t2i", "seed", "scores", "similarity", "embedder", "neg_source_key", "neg_source_shard", "category",
    "neg_categories", "changed", "instruction", "edit_prompt", "strength",
}


class CaptionModel(Protocol):
    """captions -> captions. ``retries``: whether asking again with another attempt can help."""

    retries: bool

    def open(self, device: str) -> None: ...

    def propose(
        self, captions: list[str], keys: list[str], count: int, attempt: int, progress: Progress
    ) -> list[list]:
        """Up to ``count`` candidates (str or NoAnswer) for each caption; ``keys`` and ``attempt`` seed them."""
        ...


@dataclass
class GenerateWithRetries:
    """Asks a model for ``count`` accepted, different answers per caption; shared by captions and rewrite."""

    model: CaptionModel
    checker: Checker
    count: int = 1
    attempts: int = 3
    longest: int = 1000

    def __call__(self, samples: list[Sample], stats: Stats) -> list[list]:
        """Accepted answers per sample, in order of acceptance; none where it must be dropped (counted)."""
        accepted: list[list[str]] = [[] for _ in samples]
        faults: list[str | None] = [
            "caption too long" if len(s.text) > self.longest else None for s in samples
        ]
        last: list[list[str]] = [[] for _ in samples]
        pending = [i for i, fault in enumerate(faults) if fault is None]
        attempts = self.attempts if self.model.retries else 1
        first = stats.redo_round * attempts  # asked again after a run: other seeds
        for attempt in range(first, first + attempts):
            if attempt > first:
                stats.count("asked again", len(pending))

            def report(share: float, waiting: float = len(pending) / max(len(samples), 1)) -> None:
                stats.report(1 - waiting * (1 - FIRST_ANSWERS * share))

            captions, keys = [samples[i].text for i in pending], [samples[i].key for i in pending]
            answers = self.model.propose(captions, keys, self.count, attempt, report)
            hopeless = set()
            for i, candidates in zip(pending, answers, strict=True):
                faults[i] = self._take(samples[i].text, candidates, accepted[i])
                last[i] = [str(candidate) for candidate in candidates if isinstance(candidate, str)]
                if any(isinstance(candidate, NoAnswer) for candidate in candidates):
                    hopeless.add(i)
            pending = [i for i in pending if len(accepted[i]) < self.count and i not in hopeless]
            stats.report(1 - len(pending) / max(len(samples), 1))
            if not pending:
                break
        for sample, taken, fault, heard in zip(samples, accepted, faults, last):
            if not taken:
                stats.drop(fault or "empty", sample.key, next(iter(heard), None))
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
            negative = self._read(caption, candidate)
            problem = self.checker.fault(caption, negative)
            if problem:
                fault = "unfinished" if problem == "empty" and isinstance(candidate, Unfinished) else problem
            elif len(taken) < self.count and normal(negative) not in map(normal, taken):
                taken.append(negative)
        return fault

    def _read(self, caption: str, answer: str) -> str:
        """The caption in an answer, with the instruction that the prompt asked for beside it."""
        if isinstance(answer, Negative):  # of rules: nothing is wrapped around it
            return answer
        text, edit = split_instruction(answer) if self.checker.instructions else (answer, "")
        return Negative(clean(text, caption), instruction=edit)


@dataclass
class Captions(Stage):
    """Stage: adds ``neg.txt``, and to the json ``neg_captions``, the edit category of each and, if asked
    for, the ``instruction`` that makes the first of an image.

    Args:
        images: False leaves the images out of its shards.
        instructions: whether the prompt asks for an instruction as well.
        categories: whether the edits are parsed (with spaCy) for their category.
    """

    name: ClassVar[str] = "captions"
    captions_first: ClassVar[bool] = True
    model: Any = None
    negatives: int = 1
    attempts: int = 3
    max_chars: int = 1000
    images: bool = True
    instructions: bool = False
    categories: bool = False

    @property
    def in_flight(self) -> int:
        """Two where the model allows it: one is checked, parsed and written while the other generates."""
        return getattr(self.model, "in_flight", 1)

    def config(self) -> dict:
        return {**super().config(), "model": self.model.config()}

    def open(self, device: str) -> None:
        self.model.open(device)
        self._category = Categories() if self.categories else None

    def process(self, task: ShardTask, stats: Stats) -> Iterator[Sample]:
        samples = list(task.samples(stats, images=False))
        checker = Checker(self.model.prompt, instructions=self.instructions)
        ask = GenerateWithRetries(self.model, checker, self.negatives, self.attempts, self.max_chars)
        answered = [(sample, taken) for sample, taken in zip(samples, ask(samples, stats)) if taken]
        found = {sample.key: self._found(sample.text, taken) for sample, taken in answered}
        self._add_categories(answered, found, stats)
        # A second pass brings the images, so that a shard's worth of them is never in memory.
        for sample in task.samples(Stats()) if self.images else samples:
            if new := found.get(sample.key):
                negative = new["neg_captions"][0]
                had_negative = sample.neg_text is not None or sample.neg_image is not None
                if had_negative and sample.neg_text != negative:  # its image shows another caption
                    sample.neg_image = None
                    sample.meta = {k: v for k, v in sample.meta.items() if k not in OF_NEGATIVE_IMAGE}
                sample.neg_text, sample.meta = negative, {**sample.meta, **new}
                yield sample

    def _found(self, caption: str, negatives: list[Negative]) -> dict:
        """What the json says of accepted negatives."""
        found = {"neg_captions": [str(negative) for negative in negatives], **self.model.provenance()}
        if self.instructions:
            found["instruction"] = negatives[0].instruction or instruction(caption, negatives[0])
        return found

    def _add_categories(self, answered: list[tuple], found: dict[str, dict], stats: Stats) -> None:
        told = [negative.category for _, taken in answered for negative in taken]
        if not all(told) and self._category:
            told = self._category([(sample.text, str(n)) for sample, taken in answered for n in taken])
        rest = iter(told)
        for sample, taken in answered:
            categories = [next(rest) for _ in taken]
            if all(categories):
                found[sample.key]["neg_categories"] = categories
                for name in categories:
                    stats.count(f"edit: {name}")


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
    group.add_argument(
        "--instructions",
        action="store_true",
        help="ask for an editing instruction beside each caption (for images --mode edit)",
    )
    group.add_argument(
        "--no-categories",
        action="store_true",
        help="do not parse the edits for their category (2.6 ms of CPU a caption)",
    )


def make_stage(args, *, images: bool = True) -> Captions:
    prompt = "prompt_instruction.txt" if args.instructions else "prompt_negative.txt"
    return Captions(
        make_model(args, prompt),
        args.negatives,
        args.attempts,
        args.max_caption_chars,
        images,
        args.instructions,
        categories=not args.no_categories and args.backend != "rules" and spacy_model() is not None,
    )
