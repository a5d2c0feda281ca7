"""What a benchmark asks, in four forms: choice, pair, retrieval, classification.

A task is a list of items over images and captions. It names the images and captions it needs, is told
which images turned out unusable, and scores itself from embeddings. It knows nothing of files or models.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from open_clip_triplet.evaluation.images import ImageRef
from open_clip_triplet.evaluation.metrics import (
    bootstrap_interval,
    class_ranks,
    composition_correct,
    composition_ties,
    histogram,
    pair_similarities,
    per_class_counts,
    retrieval_ranks,
    wilson_interval,
)

#: (refs) -> [n, D] rows, and (captions) -> [n, D] rows
Rows = Callable[[Sequence], np.ndarray]


@dataclass
class Outcome:
    """Scores of one task: ``metrics`` of {value, low, high}, and per-item outcomes for paired tests.

    ``right`` maps each accuracy to one boolean per item; ``items_hash`` identifies the items, so that
    two checkpoints are compared only over the same ones.
    """

    items: int
    ties: int = 0
    metrics: dict[str, dict] = field(default_factory=dict)
    right: dict[str, np.ndarray] = field(default_factory=dict)
    items_hash: str = ""
    histograms: dict | None = None


@dataclass
class Task:
    """Common to all forms. ``expected`` is the item count of the complete data, None where unknown."""

    items: list
    expected: int | None = None
    dropped: Counter = field(default_factory=Counter)
    named: list[str] = field(default_factory=list)
    note: str = ""

    main = "accuracy"

    def images(self) -> list[ImageRef]:
        """Every image needed, repeats included."""
        return [ref for item in self.items for ref in item.images]

    def captions(self) -> list[str]:
        """Every caption needed, repeats included."""
        return [caption for item in self.items for caption in item.captions]

    def drop(self, unusable: dict[ImageRef, str]) -> None:
        """Leave out the items that need one of these images; count them by reason."""
        kept = []
        for item in self.items:
            reasons = [unusable[ref] for ref in item.images if ref in unusable]
            if reasons:
                self.leave_out(reasons[0], next(str(ref) for ref in item.images if ref in unusable))
            else:
                kept.append(item)
        self.items = kept

    def leave_out(self, reason: str, name: str) -> None:
        """Count one dropped item, and remember the name of the thing that was wrong."""
        self.dropped[reason] += 1
        if len(self.named) < 50 and f"{reason}: {name}" not in self.named:
            self.named.append(f"{reason}: {name}")

    def score(self, images: Rows, texts: Rows) -> Outcome:
        raise NotImplementedError

    def _hash(self) -> str:
        digest = hashlib.blake2b(digest_size=8)
        for item in self.items:
            digest.update(f"{item.name}\0".encode())
        return digest.hexdigest()

    def _outcome(self, right: dict[str, np.ndarray], ties: int) -> Outcome:
        outcome = Outcome(len(self.items), ties, right=right, items_hash=self._hash())
        for name, correct in right.items():
            outcome.metrics[name] = proportion(int(correct.sum()), len(correct))
        return outcome


def proportion(right: int, total: int) -> dict:
    """A metric from a count, with its Wilson interval; values are NaN for no items."""
    low, high = wilson_interval(right, total)
    return {"value": right / total if total else math.nan, "low": low, "high": high}


@dataclass(frozen=True)
class Choice:
    """One image; it must be closer to every caption of ``positives`` than to any of ``negatives``."""

    name: str
    image: ImageRef
    positives: tuple[str, ...]
    negatives: tuple[str, ...]
    group: str = ""

    @property
    def images(self) -> tuple[ImageRef, ...]:
        return (self.image,)

    @property
    def captions(self) -> tuple[str, ...]:
        return self.positives + self.negatives


class ChoiceTask(Task):
    """SugarCrepe, VALSE, ARO, SugarCrepe++, NegBench: pick the right caption(s) of an image.

    Where items carry a ``group``, the mean over groups of the accuracy within each is given too.
    """

    def score(self, images: Rows, texts: Rows) -> Outcome:
        if not self.items:
            return self._outcome({"accuracy": np.zeros(0, bool)}, 0)
        worst = self._extreme(images, texts, "positives", np.minimum)
        best = self._extreme(images, texts, "negatives", np.maximum)
        outcome = self._outcome({"accuracy": worst > best}, int((worst == best).sum()))
        if any(item.group for item in self.items):
            outcome.metrics["macro"] = self._macro(outcome.right["accuracy"])
        return outcome

    def _extreme(self, images: Rows, texts: Rows, side: str, reduce: np.ufunc) -> np.ndarray:
        """[n] lowest similarity of an item's positives, or highest of its negatives, in float64."""
        owner = [i for i, item in enumerate(self.items) for _ in getattr(item, side)]
        y = texts([caption for item in self.items for caption in getattr(item, side)])
        x = images([item.image for item in self.items])
        scores = np.concatenate(
            [
                np.einsum("nd,nd->n", x[owner[s : s + 8192]], y[s : s + 8192], dtype=np.float64)
                for s in range(0, len(owner), 8192)
            ]
        )
        out = np.full(len(self.items), np.inf if reduce is np.minimum else -np.inf)
        reduce.at(out, owner, scores)
        return out

    def _macro(self, right: np.ndarray) -> dict:
        groups = {name: i for i, name in enumerate(dict.fromkeys(item.group for item in self.items))}
        labels = [groups[item.group] for item in self.items]
        return class_mean(right, labels, len(groups))


def class_mean(right: np.ndarray, labels: Sequence[int], classes: int) -> dict:
    """Mean over the classes that occur of the accuracy within each, with a bootstrap interval."""
    counts = [(int(k), int(n)) for k, n in zip(*per_class_counts(right, labels, classes)) if n]
    if not counts:
        return {"value": math.nan, "low": math.nan, "high": math.nan}
    low, high = bootstrap_interval(counts, lambda drawn: drawn.mean(axis=0))
    return {"value": float(np.mean([k / n for k, n in counts])), "low": low, "high": high}


@dataclass(frozen=True)
class Pair:
    """Two images and two captions; image i belongs with caption i."""

    name: str
    images: tuple[ImageRef, ImageRef]
    captions: tuple[str, str]


class PairTask(Task):
    """Winoground, Cola, BiVLC, TripletData: text, image and group score.

    ``histograms`` keeps the cosine similarity of the two images and of the two captions
    (the paper's Figures 4 and 5).
    """

    main = "group"

    def score(self, images: Rows, texts: Rows) -> Outcome:
        if not self.items:
            return pair_outcome(np.zeros((0, 6)))
        x = [images([item.images[i] for item in self.items]) for i in (0, 1)]
        y = [texts([item.captions[i] for item in self.items]) for i in (0, 1)]
        outcome = pair_outcome(pair_similarities(*x, *y))
        outcome.items_hash = self._hash()
        return outcome


def pair_outcome(similarities: np.ndarray) -> Outcome:
    """Text, image and group score of ``pair_similarities``' [n, 6] rows."""
    scores, (image, text) = similarities.T[:4], similarities.T[4:]
    right = composition_correct(*scores)
    outcome = Outcome(len(similarities), composition_ties(*scores), right=right)
    outcome.metrics = {name: proportion(int(correct.sum()), len(correct)) for name, correct in right.items()}
    edges, counts = histogram(image)
    outcome.histograms = {"edges": edges, "image": counts, "text": histogram(text)[1]}
    return outcome


@dataclass(frozen=True)
class Captioned:
    """One image and its captions."""

    name: str
    image: ImageRef
    captions: tuple[str, ...]

    @property
    def images(self) -> tuple[ImageRef, ...]:
        return (self.image,)


class RetrievalTask(Task):
    """COCO, Flickr30k: recall at 1, 5 and 10; ``i2t`` finds an image's caption, ``t2i`` the image."""

    main = "i2t_r5"
    depths = (1, 5, 10)

    def score(self, images: Rows, texts: Rows) -> Outcome:
        captions = [caption for item in self.items for caption in item.captions]
        owner = [i for i, item in enumerate(self.items) for _ in item.captions]
        if not captions:
            names = [f"{way}_r{k}" for way in ("i2t", "t2i") for k in self.depths]
            return self._outcome(dict.fromkeys(names, np.zeros(0, bool)), 0)
        x = images([item.image for item in self.items])
        of_image, of_text, ties = retrieval_ranks(x, texts(captions), np.array(owner))
        right = {f"i2t_r{k}": of_image < k for k in self.depths}
        right.update({f"t2i_r{k}": of_text < k for k in self.depths})
        return self._outcome(right, ties)


@dataclass(frozen=True)
class Labelled:
    """One image and the index of its class."""

    name: str
    image: ImageRef
    label: int
    captions: tuple[str, ...] = ()

    @property
    def images(self) -> tuple[ImageRef, ...]:
        return (self.image,)


@dataclass
class ClassifyTask(Task):
    """Zero-shot classification: a class is the mean of its prompts' unit-norm embeddings.

    ``classes`` are names; ``templates`` hold ``{c}``. Fewer than five classes have no ``top5``.
    """

    classes: list[str] = field(default_factory=list)
    templates: list[str] = field(default_factory=list)

    main = "top1"

    def prompts(self, name: str) -> list[str]:
        return [template.replace("{c}", name) for template in self.templates]

    def captions(self) -> list[str]:
        return [prompt for name in self.classes for prompt in self.prompts(name)]

    def score(self, images: Rows, texts: Rows) -> Outcome:
        if not self.items:
            return self._outcome({"top1": np.zeros(0, bool)}, 0)
        means = np.stack([texts(self.prompts(name)).mean(axis=0) for name in self.classes])
        classifier = means / np.linalg.norm(means, axis=1, keepdims=True)
        labels = np.array([item.label for item in self.items])
        ranks, _, ties = class_ranks(images([item.image for item in self.items]), classifier, labels)
        right = {"top1": ranks < 1}
        if len(self.classes) >= 5:
            right["top5"] = ranks < 5
        outcome = self._outcome(right, ties)
        outcome.metrics["mean_per_class"] = class_mean(ranks < 1, labels, len(self.classes))
        return outcome
