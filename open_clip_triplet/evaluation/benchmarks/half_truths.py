"""Half-Truths: a short true caption must score above itself with a wrong detail added, and below itself with a
true one. Three files of one Parquet row a comparison.

``accuracy``: the anchor above the half-truth (the authors' half-truth accuracy). ``ordering``: the full truth
above the anchor above the half-truth (their correct-ordering rate). Groups: the detail is an entity or a relation.
Reference: Kargi et al., 2026, arXiv:2602.23906; github.com/kargibora/CS-CLIP (scripts/evaluate_half_truth.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from open_clip_triplet.evaluation.benchmarks.base import (
    Benchmark,
    Headline,
    is_caption,
    parquet_image,
    parquet_rows,
    subset_files,
)
from open_clip_triplet.evaluation.metrics import finite, row_similarities
from open_clip_triplet.evaluation.tasks import Choice, Outcome, Task
from open_clip_triplet.evaluation.tasks.base import Rows, number

SUBSETS = ("coco_qwen", "coco_mistral", "cc3m_qwen")
CAPTIONS = ("anchor", "full_truth", "half_truth")
KINDS = ("entity", "relation")


class OrderTask(Task):
    """Items are ``Choice`` with positives (anchor, full truth) and the half-truth as negative."""

    def score(self, images: Rows, texts: Rows) -> Outcome:
        if not self.items:
            return self.finish(Outcome(0, right=dict.fromkeys(("accuracy", "ordering"), np.zeros(0, bool))))
        x = finite("images", images([item.image for item in self.items]))
        anchor, full, half = (
            row_similarities(x, finite("captions", texts([item.captions[i] for item in self.items])))
            for i in range(3)
        )
        right = {"accuracy": anchor > half, "ordering": (full > anchor) & (anchor > half)}
        outcome = Outcome(len(self.items), int(((anchor == half) | (full == anchor)).sum()), right=right)
        outcome.rows = lambda: self._rows((anchor, full, half), right)
        return self.finish(outcome)

    def _rows(self, scores: tuple, right: dict) -> Iterator[dict]:
        for index, item in enumerate(self.items):
            yield {
                "key": item.name,
                "image": str(item.image),
                "captions": list(item.captions),
                "scores": [number(score[index]) for score in scores],
                "outcome": {name: bool(correct[index]) for name, correct in right.items()},
            }


def load(root: Path) -> dict[str, OrderTask]:
    tasks = {}
    files = {subset: f"{subset}.parquet" for subset in SUBSETS}
    for subset, path in subset_files(root, ["half_truths/data", "half_truths"], files):
        task = tasks[subset] = OrderTask([])  # Parquet knows its own number of rows: a cut file is refused
        for row_number, row in parquet_rows(path, ("id", "triplet_type", *CAPTIONS)):
            captions = tuple(row[name] for name in CAPTIONS)
            name = f"{subset} {row['id']}"
            if not all(map(is_caption, captions)) or row["triplet_type"] not in KINDS:
                task.add(None, name)
                continue
            image = parquet_image(path, "image", row_number)
            task.items.append(Choice(name, image, captions[:2], captions[2:], (row["triplet_type"],)))
    return tasks


BENCHMARK = Benchmark(
    name="half_truths",
    title="Half-Truths",
    licence="see its dataset card; COCO images under their own Creative Commons licences",
    source="https://huggingface.co/datasets/kbora/Half-Truths",
    layout=tuple(f"half_truths/data/{subset}.parquet" for subset in SUBSETS),
    loader=load,
    expected={},
    headlines=tuple(
        Headline(f"{subset}{f', {kind}' if kind else ''}, {label}", metric, subset, kind)
        for subset in SUBSETS
        for kind in ("", *KINDS)
        for label, metric in (("half-truth accuracy", "accuracy"), ("correct ordering", "ordering"))
    ),
    reference="Kargi et al., arXiv:2602.23906",
)
