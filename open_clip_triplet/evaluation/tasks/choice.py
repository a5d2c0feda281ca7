"""Pick the right caption(s) of an image: SugarCrepe, VALSE, ARO, SugarCrepe++, NegBench."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from open_clip_triplet.evaluation.metrics import finite, row_similarities
from open_clip_triplet.evaluation.tasks.base import OfImage, Outcome, Rows, Task, class_mean, number

#: items scored at once
BLOCK = 8192


@dataclass(frozen=True)
class Choice(OfImage):
    """One image; it must be closer to every caption of ``positives`` than to any of ``negatives``."""

    positives: tuple[str, ...]
    negatives: tuple[str, ...]
    groups: tuple[str, ...] = ()

    @property
    def captions(self) -> tuple[str, ...]:
        return self.positives + self.negatives


@dataclass
class ChoiceTask(Task):
    """Accuracy; a tie is wrong.

    macro: groups over which ``macro``, the mean of the accuracy within each, is taken: those of at
        least ``macro_least`` items that are not in ``macro_without``. False: no such metric.
    text_only: also ``text_only``, which asks no image: two positives must be closer to each other than
        either is to the negative (SugarCrepe++'s text-only task).
    """

    macro: bool = False
    macro_least: int = 1
    macro_without: frozenset[str] = frozenset()
    text_only: bool = False

    def score(self, images: Rows, texts: Rows) -> Outcome:
        none = np.zeros(0, bool)
        if not self.items:
            return self.finish(Outcome(0, right={"accuracy": none} | ({"text_only": none} if self.text_only else {})))
        positives, worst = self._similarities(images, texts, "positives", np.minimum)
        negatives, best = self._similarities(images, texts, "negatives", np.maximum)
        right = {"accuracy": worst > best}
        if self.text_only:
            right["text_only"] = self._text_only(texts)
        outcome = Outcome(len(self.items), int((worst == best).sum()), right=right)
        outcome.rows = lambda: self._rows(positives, negatives, right)
        if self.macro:
            outcome.metrics["macro"] = self._macro(right["accuracy"])
        return self.finish(outcome)

    def answer(self, item: Choice) -> object:
        return len(item.positives), len(item.negatives)

    def _similarities(
        self, images: Rows, texts: Rows, side: str, reduce: np.ufunc
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of an item's positives or negatives: all similarities, and [n] the lowest or highest one."""
        owner = np.array([i for i, item in enumerate(self.items) for _ in getattr(item, side)])
        y = finite("captions", texts([c for item in self.items for c in getattr(item, side)]))
        x = finite("images", images([item.image for item in self.items]))
        starts = range(0, len(owner), BLOCK)
        scores = np.concatenate([row_similarities(x[owner[s : s + BLOCK]], y[s : s + BLOCK]) for s in starts])
        extreme = np.full(len(self.items), np.inf if reduce is np.minimum else -np.inf)
        reduce.at(extreme, owner, scores)
        return scores, extreme

    def _text_only(self, texts: Rows) -> np.ndarray:
        first, second = (finite("captions", texts([x.positives[i] for x in self.items])) for i in (0, 1))
        negative = finite("captions", texts([x.negatives[0] for x in self.items]))
        between = row_similarities(first, second)
        return (between > row_similarities(first, negative)) & (between > row_similarities(second, negative))

    def _macro(self, right: np.ndarray) -> dict:
        groups = [item.groups[0] for item in self.items]
        sizes = Counter(groups)
        counted = [g for g, n in sizes.items() if n >= self.macro_least and g not in self.macro_without]
        place = {name: index for index, name in enumerate(counted)}
        chosen = [i for i, group in enumerate(groups) if group in place]
        return class_mean(right[chosen], [place[groups[i]] for i in chosen])

    def _rows(self, positives: np.ndarray, negatives: np.ndarray, right: dict) -> Iterator[dict]:
        p = n = 0
        for index, item in enumerate(self.items):
            p_end, n_end = p + len(item.positives), n + len(item.negatives)
            yield {
                "key": item.name,
                "image": str(item.image),
                "captions": [*item.positives, *item.negatives],
                "positives": len(item.positives),
                "scores": [number(s) for s in (*positives[p:p_end], *negatives[n:n_end])],
                "outcome": {name: bool(correct[index]) for name, correct in right.items()},
            }
            p, n = p_end, n_end
