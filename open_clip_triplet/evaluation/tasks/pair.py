"""Two images and two captions that belong together crosswise: Winoground, Cola, BiVLC, TripletData."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from open_clip_triplet.evaluation.images import ImageRef
from open_clip_triplet.evaluation.metrics import (
    composition_correct,
    composition_ties,
    histogram,
    pair_similarities,
)
from open_clip_triplet.evaluation.tasks.base import Outcome, Rows, Task, number, proportion


@dataclass(frozen=True)
class Pair:
    """Two images and two captions; image i belongs with caption i."""

    name: str
    images: tuple[ImageRef, ImageRef]
    captions: tuple[str, str]
    groups: tuple[str, ...] = ()


class PairTask(Task):
    """Text, image and group score.

    ``histograms`` keeps the cosine similarity of the two images and of the two captions
    (the paper's Figures 4 and 5).
    """

    def score(self, images: Rows, texts: Rows) -> Outcome:
        if not self.items:
            return self.finish(pair_outcome(np.zeros((0, 6))))
        x = [images([item.images[i] for item in self.items]) for i in (0, 1)]
        y = [texts([item.captions[i] for item in self.items]) for i in (0, 1)]
        similarities = pair_similarities(*x, *y)
        outcome = pair_outcome(similarities)
        outcome.rows = lambda: self._rows(similarities, outcome.right)
        return self.finish(outcome)

    def _rows(self, similarities: np.ndarray, right: dict) -> Iterator[dict]:
        for index, item in enumerate(self.items):
            yield {
                "key": item.name,
                "images": [str(ref) for ref in item.images],
                "captions": list(item.captions),
                "scores": [[number(s) for s in similarities[index, i : i + 2]] for i in (0, 2)],
                "outcome": {name: bool(correct[index]) for name, correct in right.items()},
            }


def pair_outcome(similarities: np.ndarray) -> Outcome:
    """Text, image and group score of ``pair_similarities``' [n, 6] rows."""
    scores, (image, text) = similarities.T[:4], similarities.T[4:]
    right = composition_correct(*scores)
    outcome = Outcome(len(similarities), composition_ties(*scores), right=right)
    outcome.metrics = {name: proportion(int(correct.sum()), len(correct)) for name, correct in right.items()}
    edges, counts = histogram(image)
    outcome.histograms = {"edges": edges, "image": counts, "text": histogram(text)[1]}
    return outcome
