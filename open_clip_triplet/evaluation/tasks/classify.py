"""Zero-shot classification."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from open_clip_triplet.evaluation.metrics import Ranking, class_ranks
from open_clip_triplet.evaluation.tasks.base import (
    OfImage,
    Outcome,
    Rows,
    Task,
    class_mean,
    equal_ids,
    number,
)


@dataclass(frozen=True)
class Labelled(OfImage):
    """One image and the index of its class."""

    label: int
    captions: tuple[str, ...] = ()


@dataclass
class ClassifyTask(Task):
    """A class is the mean of its prompts' unit-norm embeddings.

    ``classes`` are names; ``templates`` hold ``{c}``. Fewer than five classes have no ``top5``. Classes
    of one name (ImageNet's two missiles, its two sunglasses) count as right for one another.
    """

    classes: list[str] = field(default_factory=list)
    templates: list[str] = field(default_factory=list)

    def prompts(self, name: str) -> list[str]:
        return [template.replace("{c}", name) for template in self.templates]

    def captions(self) -> list[str]:
        return [prompt for name in self.classes for prompt in self.prompts(name)]

    def answer(self, item: Labelled) -> object:
        return item.label

    def score(self, images: Rows, texts: Rows) -> Outcome:
        if not self.items:
            return self.finish(Outcome(0, right={"top1": np.zeros(0, bool)}))
        means = np.stack([texts(self.prompts(name)).mean(axis=0) for name in self.classes])
        classifier = means / np.linalg.norm(means, axis=1, keepdims=True)
        labels, ids = np.array([item.label for item in self.items]), equal_ids(self.classes)
        ranking = class_ranks(images([item.image for item in self.items]), classifier, labels, ids)
        right = {"top1": ranking.ranks < 1}
        if len(self.classes) >= 5:
            right["top5"] = ranking.ranks < 5
        shared = np.bincount(ids)[ids] > 1
        outcome = Outcome(len(self.items), ranking.ties, right=right, equal=int(shared[labels].sum()))
        outcome.metrics["mean_per_class"] = class_mean(right["top1"], labels)
        outcome.rows = lambda: self._rows(ranking, right)
        return self.finish(outcome)

    def _rows(self, ranking: Ranking, right: dict) -> Iterator[dict]:
        for index, item in enumerate(self.items):
            yield {
                "key": item.name,
                "image": str(item.image),
                "captions": [self.classes[item.label]],
                "best_wrong": self.classes[ranking.best_wrong[index]],
                "scores": [number(ranking.right[index]), number(ranking.wrong[index])],
                "outcome": {name: bool(correct[index]) for name, correct in right.items()},
            }
