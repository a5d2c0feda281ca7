"""Pick the right image of a caption: SPEC, SVO-Probes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from open_clip_triplet.evaluation.images import ImageRef
from open_clip_triplet.evaluation.metrics import finite, row_similarities
from open_clip_triplet.evaluation.tasks.base import Outcome, Rows, Task, number


@dataclass(frozen=True)
class ImageChoice:
    """One caption; it must be closer to the first of ``images`` than to any other of them."""

    name: str
    caption: str
    images: tuple[ImageRef, ...]
    groups: tuple[str, ...] = ()

    @property
    def captions(self) -> tuple[str, ...]:
        return (self.caption,)


class ImageChoiceTask(Task):
    """Accuracy; a tie is wrong."""

    def score(self, images: Rows, texts: Rows) -> Outcome:
        if not self.items:
            return self.finish(Outcome(0, right={"accuracy": np.zeros(0, bool)}))
        y = finite("captions", texts([item.caption for item in self.items]))
        sizes = [len(item.images) for item in self.items]
        x = finite("images", images([ref for item in self.items for ref in item.images]))
        scores = row_similarities(x, np.repeat(y, sizes, axis=0))
        starts = np.cumsum([0, *sizes[:-1]])
        right = scores[starts]
        wrong = scores.copy()
        wrong[starts] = -np.inf
        best = np.maximum.reduceat(wrong, starts)
        outcome = Outcome(len(self.items), int((right == best).sum()), right={"accuracy": right > best})
        outcome.rows = lambda: self._rows(scores, starts, right > best)
        return self.finish(outcome)

    def _rows(self, scores: np.ndarray, starts: np.ndarray, correct: np.ndarray) -> Iterator[dict]:
        for index, item in enumerate(self.items):
            mine = scores[starts[index] : starts[index] + len(item.images)]
            yield {
                "key": item.name,
                "images": [str(ref) for ref in item.images],
                "captions": [item.caption],
                "scores": [number(score) for score in mine],
                "outcome": {"accuracy": bool(correct[index])},
            }
