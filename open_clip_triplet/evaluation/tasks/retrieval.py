"""Find an image's caption among all captions, and a caption's image among all images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from open_clip_triplet.evaluation.metrics import Ranking, retrieval_ranks
from open_clip_triplet.evaluation.tasks.base import OfImage, Outcome, Rows, Task, equal_ids, number


@dataclass(frozen=True)
class Captioned(OfImage):
    """One image and its captions."""

    captions: tuple[str, ...]


class RetrievalTask(Task):
    """Recall at 1, 5 and 10; ``i2t`` finds an image's caption, ``t2i`` the image.

    Where two images have an equal caption, either image is right for it and it is right for either.
    """

    depths = (1, 5, 10)

    def score(self, images: Rows, texts: Rows) -> Outcome:
        captions = [caption for item in self.items for caption in item.captions]
        owner = np.array([i for i, item in enumerate(self.items) for _ in item.captions], dtype=np.int64)
        if not captions:
            names = [f"{way}_r{k}" for way in ("i2t", "t2i") for k in self.depths]
            return self.finish(Outcome(len(self.items), right=dict.fromkeys(names, np.zeros(0, bool))))
        ids = equal_ids(captions)
        x = images([item.image for item in self.items])
        i2t, t2i = retrieval_ranks(x, texts(captions), owner, ids)
        right = {
            f"{way}_r{k}": ranking.ranks < k
            for way, ranking in (("i2t", i2t), ("t2i", t2i))
            for k in self.depths
        }
        outcome = Outcome(len(self.items), i2t.ties + t2i.ties, right=right, equal=_shared(ids, owner))
        outcome.rows = lambda: self._rows(captions, owner, i2t, t2i)
        return self.finish(outcome)

    def _rows(self, captions: list[str], owner: np.ndarray, i2t: Ranking, t2i: Ranking) -> Iterator[dict]:
        """A row per image, then a row per caption."""
        for index, item in enumerate(self.items):
            yield {
                "key": item.name,
                "image": str(item.image),
                "captions": list(item.captions),
                "direction": "i2t",
                "best_wrong": captions[i2t.best_wrong[index]],
                **_result(i2t, index),
            }
        for index, caption in enumerate(captions):
            yield {
                "key": self.items[owner[index]].name,
                "captions": [caption],
                "direction": "t2i",
                "best_wrong": self.items[t2i.best_wrong[index]].name,
                **_result(t2i, index),
            }


def _result(ranking: Ranking, index: int) -> dict:
    return {
        "scores": [number(ranking.right[index]), number(ranking.wrong[index])],
        "outcome": {"rank": int(ranking.ranks[index])},
    }


def _shared(ids: np.ndarray, owner: np.ndarray) -> int:
    """Captions that equal a caption of another image."""
    images_of: dict[int, set[int]] = {}
    for caption, image in zip(ids.tolist(), owner.tolist()):
        images_of.setdefault(caption, set()).add(image)
    return sum(len(images_of[caption]) > 1 for caption in ids.tolist())
