"""What all forms of task share: items that can be left out with a reason, and the outcome of scoring."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from open_clip_triplet.evaluation.images import ImageRef
from open_clip_triplet.evaluation.metrics import bootstrap_interval, wilson_interval

#: (refs) -> [n, D] rows, and (captions) -> [n, D] rows
Rows = Callable[[Sequence], np.ndarray]
#: names of left-out things that a result keeps
NAMED = 50
#: what a hash of items begins with since it covers images and captions; an older one is of names alone
CONTENT = "content:"


@dataclass(frozen=True)
class OfImage:
    """An item that is about one image."""

    name: str
    image: ImageRef

    @property
    def images(self) -> tuple[ImageRef, ...]:
        return (self.image,)


@dataclass
class Outcome:
    """Scores of one task.

    metrics: name -> {value, low, high}, in 0..1.
    right: accuracy -> one boolean per item, for paired tests between checkpoints.
    groups: group of items (relation, type, tag) -> {items, metrics}.
    equal: items of which some right answer is right only because it equals another (EQUAL_RULE).
    rows: makes one dict per item, with key, captions, scores and outcome: ``items.jsonl``.
    """

    items: int
    ties: int = 0
    metrics: dict[str, dict] = field(default_factory=dict)
    right: dict[str, np.ndarray] = field(default_factory=dict)
    histograms: dict | None = None
    groups: dict[str, dict] = field(default_factory=dict)
    equal: int = 0
    rows: Callable[[], Iterator[dict]] = lambda: iter(())


@dataclass
class Task:
    """Common to all forms. ``expected`` is the item count of the complete data, None where unknown."""

    items: list
    expected: int | None = None
    dropped: Counter = field(default_factory=Counter)
    named: list[str] = field(default_factory=list)
    note: str = ""
    limited: int | None = None

    def images(self) -> list[ImageRef]:
        """Every image needed, repeats included."""
        return [ref for item in self.items for ref in item.images]

    def captions(self) -> list[str]:
        """Every caption needed, repeats included."""
        return [caption for item in self.items for caption in item.captions]

    def drop(self, unusable: dict[ImageRef, str]) -> None:
        """Leave out the items that need one of these images; count them by reason."""
        if not unusable:
            return
        kept = []
        for item in self.items:
            reasons = [unusable[ref] for ref in item.images if ref in unusable]
            if reasons:
                self.leave_out(reasons[0], next(str(ref) for ref in item.images if ref in unusable))
            else:
                kept.append(item)
        self.items = kept

    def drop_missing(self) -> None:
        """Leave out the items of which an image is not there; images are looked for, not opened."""
        self.drop({ref: "image missing" for ref in set(self.images()) if not ref.exists()})

    def leave_out(self, reason: str, name: str) -> None:
        """Count one dropped item, and remember the name of the thing that was wrong."""
        self.dropped[reason] += 1
        text = f"{reason}: {name if len(name) <= 300 else name[:297] + '...'}"
        if len(self.named) < NAMED and text not in self.named:
            self.named.append(text)

    def add(self, item, place: str) -> None:
        """Keep an item; None, for a broken annotation, is left out under its place in the file."""
        if item is None:
            self.leave_out("annotation incomplete", place)
        else:
            self.items.append(item)

    def limit(self, number: int) -> None:
        """Keep the first ``number`` items, for a trial run; the result says so."""
        if len(self.items) > number:
            self.items = self.items[:number]
            self.limited = number

    @property
    def whole(self) -> bool:
        """Whether every item that the complete data has is here."""
        if not self.items or self.note or self.limited is not None:
            return False
        return not self.dropped if self.expected is None else len(self.items) == self.expected

    def score(self, images: Rows, texts: Rows) -> Outcome:
        """Scores from embeddings of unit norm; no items give NaN."""
        raise NotImplementedError

    def finish(self, outcome: Outcome) -> Outcome:
        """Fill in what follows from ``right``: a metric per accuracy, groups."""
        for name, correct in outcome.right.items():
            outcome.metrics.setdefault(name, proportion(int(correct.sum()), len(correct)))
        members: dict[str, list[int]] = {}
        for index, item in enumerate(self.items):
            for group in getattr(item, "groups", ()):
                members.setdefault(group, []).append(index)
        for group, indices in members.items():
            metrics = {
                name: proportion(int(correct[indices].sum()), len(indices))
                for name, correct in outcome.right.items()
            }
            outcome.groups[group] = {"items": len(indices), "metrics": metrics}
        return outcome

    def items_hash(self, identities: Mapping[ImageRef, str]) -> str:
        """Hash of what is asked, so that two checkpoints are compared over the same items alone.

        Args:
            identities: image -> hash of its content; an image without one is told apart by its place.
        """
        digest = hashlib.blake2b(digest_size=8)
        for caption in self.captions():
            digest.update(json.dumps(caption).encode())
        for item in self.items:
            images = [identities.get(ref, str(ref)) for ref in item.images]
            digest.update(json.dumps([item.name, images, self.answer(item)]).encode())
        return CONTENT + digest.hexdigest()

    def answer(self, item) -> object:
        """What of an item is right, beside its images and captions; part of its hash."""
        return len(item.captions)


def proportion(right: int, total: int) -> dict:
    """A metric from a count, with its Wilson interval; values are NaN for no items."""
    low, high = wilson_interval(right, total)
    return {"value": right / total if total else math.nan, "low": low, "high": high}


def class_mean(right: np.ndarray, labels: Sequence[int] | np.ndarray) -> dict:
    """Mean over the classes that occur of the accuracy within each, with a bootstrap interval."""
    classes = np.asarray(labels, dtype=np.int64)
    counts = [(int(k), int(n)) for k, n in zip(np.bincount(classes, right), np.bincount(classes)) if n]
    if not counts:
        return {"value": math.nan, "low": math.nan, "high": math.nan}
    low, high = bootstrap_interval(counts, lambda drawn: drawn.mean(axis=0))
    return {"value": float(np.mean([k / n for k, n in counts])), "low": low, "high": high}


def equal_ids(texts: Sequence[str]) -> np.ndarray:
    """[n] integers, equal for equal texts.

    >>> equal_ids(["missile", "cat", "missile"]).tolist()
    [0, 1, 0]
    """
    known: dict[str, int] = {}
    return np.array([known.setdefault(text, len(known)) for text in texts], dtype=np.int64)


def number(value: float) -> float | None:
    """A similarity for JSON, which has no infinity."""
    return round(float(value), 6) if math.isfinite(value) else None
