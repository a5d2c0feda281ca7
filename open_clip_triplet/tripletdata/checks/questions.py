"""Question answering, as the paper's appendix F: does the negative image show what its caption says?

A language model writes yes-or-no questions about a negative caption, each with the answer that the
caption implies; a model that answers questions about images (ViLT, or any vision-language model that
transformers can load) answers them on the negative image.

The questions of a sample are stored as ``items``: ``[{"question", "expected", "answer"}, ...]``, answers
being ``yes`` or ``no`` (``""`` where the model said neither), beside ``accuracy``, 0 to 1.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

from open_clip_triplet.errors import ImageError
from open_clip_triplet.tripletdata.backends.language import NoAnswer
from open_clip_triplet.tripletdata.checks.base import store
from open_clip_triplet.tripletdata.run.pictures import decode
from open_clip_triplet.tripletdata.run.sample import Sample, Stats
from open_clip_triplet.tripletdata.run.stage import Stage, model_name
from open_clip_triplet.tripletdata.run.task import ShardTask

PROMPT = "prompt_questions.txt"
#: samples whose questions are written together
WINDOW = 256
_QUESTION = re.compile(r"^\s*(?:\d+[.)]|[-*•]|Q\d*[:.])?\s*(.+?\?)\W*(?:answer\W*)?\b(yes|no)\b", re.I)


def read_questions(answer: str, count: int) -> list[tuple[str, str]]:
    """(question, expected answer) of a language model's lines like ``1. Is there a dog? Yes``.

    >>> read_questions("1. Is there a dog? Yes\\n2. Is it red? (no)\\nI hope this helps.", 5)
    [('Is there a dog?', 'yes'), ('Is it red?', 'no')]
    """
    found = dict.fromkeys(
        (match[1].strip(' *"'), match[2].lower())
        for line in answer.splitlines()
        if (match := _QUESTION.match(line))
    )
    return list(found)[:count]


@dataclass
class Questions(Stage):
    """Stage: ``questions`` in ``verify``.

    Args:
        model: the language model that writes the questions. vqa: the model that answers them.
        count: questions per negative caption (5 in the paper).
    """

    name: ClassVar[str] = "questions"
    model: Any = None
    vqa: Any = None
    count: int = 5

    def config(self) -> dict:
        return {**super().config(), "model": self.model.config(), "vqa": self.vqa.config()}

    def open(self, device: str) -> None:
        self.model.open(device)
        self.vqa.open(device)

    def process(self, task: ShardTask, stats: Stats) -> Iterator[Sample]:
        source = task.samples(stats)
        while samples := list(islice(source, WINDOW)):
            batch = [row for sample in samples if (row := self._usable(sample, stats))]
            asked = self._ask([sample for sample, _ in batch])
            pairs = [(image, q) for (_, image), questions in zip(batch, asked) for q, _ in questions]
            answers = iter(self.vqa.answer(pairs))
            for (sample, _), questions in zip(batch, asked, strict=True):
                items = [{"question": q, "expected": e, "answer": next(answers)} for q, e in questions]
                right = sum(item["answer"] == item["expected"] for item in items)
                scores = {
                    "items": items,
                    "accuracy": round(right / len(items), 6) if items else None,
                    "llm": model_name(self.model.model),
                    "vqa": model_name(self.vqa.model),
                }
                if not items:
                    stats.count("no questions")
                yield store(dataclasses.replace(sample, image=None, neg_image=None), stats, self.name, scores)

    def _usable(self, sample: Sample, stats: Stats) -> tuple | None:
        if not (sample.neg_text and sample.neg_image):
            stats.drop("no negative to ask about", sample.key)
            return None
        try:
            return sample, decode(sample.neg_image).rgb
        except ImageError:
            stats.drop("negative image cannot be decoded", sample.key)
            return None

    def _ask(self, samples: list[Sample]) -> list[list[tuple[str, str]]]:
        """Questions and expected answers of each sample; none where the model wrote none."""
        answers = self.model.propose([s.neg_text for s in samples], [s.key for s in samples], 1, 0)
        return [
            [] if isinstance(answer, NoAnswer) else read_questions(answer, self.count) for (answer,) in answers
        ]
