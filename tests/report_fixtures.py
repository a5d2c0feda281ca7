"""Results made from outcomes that a test chooses, through the same door as a run's."""

import numpy as np

from open_clip_triplet.evaluation.benchmarks import get
from open_clip_triplet.evaluation.metrics import histogram
from open_clip_triplet.evaluation.results import build_result
from open_clip_triplet.evaluation.tasks import Outcome, Task


def size(benchmark: str, subset: str) -> int:
    """Items of a subset; the large ones are cut, which the reports do not look at."""
    items = get(benchmark).expected.get(subset, 500)
    return items if benchmark == "sugarcrepe" else min(items, 500)


def made(
    benchmark: str, name: str, right: dict[str, dict[str, int]], histograms: bool = False, sizes: dict | None = None
) -> dict:
    """A complete result. ``right``: subset -> metric -> how many of its items are right, the first ones.

    ``sizes``: items of the subsets that have others than ``size`` says.
    """
    described = get(benchmark)
    tasks, outcomes = {}, {}
    for subset, counts in right.items():
        items = (sizes or {}).get(subset, size(benchmark, subset))
        task = tasks[subset] = Task([_Item(str(i)) for i in range(items)], expected=items)
        correct = {metric: np.arange(items) < count for metric, count in counts.items()}
        outcome = Outcome(items, right=correct)
        if histograms:
            edges, counted = histogram(np.linspace(0.2, 0.9, items))
            outcome.histograms = {"edges": edges, "image": counted, "text": counted}
        outcomes[subset] = task.finish(outcome)
    return build_result(
        described,
        tasks,
        outcomes,
        checkpoint={"name": name, "weights": name * 8, "precision": "fp32"},
        remarks={"unique": 1},
        captions={"unique": 1, "cut": 0},
    )


class _Item:
    def __init__(self, name: str):
        self.name, self.images, self.captions, self.groups = name, (), (), ()


def share(benchmark: str, name: str, metrics: dict[str, float], **options) -> dict:
    """A complete result in which this share of every subset's items is right."""
    right = {
        subset: {metric: round(part * size(benchmark, subset)) for metric, part in metrics.items()}
        for subset in (get(benchmark).expected or (benchmark,))
    }
    return made(benchmark, name, right, **options)


def model(name: str, composition: float, retention: float) -> list[dict]:
    """The paper's suite of a model that is as good as this at composition and at retention."""
    recalls = {f"{way}_r{k}": retention for way in ("i2t", "t2i") for k in (1, 5, 10)}
    scores = dict.fromkeys(("text", "image", "group"), composition)
    return [
        share("sugarcrepe", name, {"accuracy": composition}),
        share("winoground", name, scores),
        share("retrieval", name, recalls),
        share("zeroshot", name, {"top1": retention, "top5": min(1, 2 * retention)}),
        share("tripletdata", name, scores, histograms=True),
    ]
