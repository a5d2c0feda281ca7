"""A result: one JSON per checkpoint and benchmark, complete enough to be reported and compared later."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Mapping

import numpy as np

from open_clip_triplet import __version__
from open_clip_triplet.evaluation.benchmarks import get
from open_clip_triplet.evaluation.benchmarks.base import Benchmark, tree_leaves, tree_mean
from open_clip_triplet.evaluation.images import ImageRef
from open_clip_triplet.evaluation.metrics import EQUAL_RULE, TIE_RULE, bootstrap_interval
from open_clip_triplet.evaluation.tasks import CONTENT, Outcome, Task, proportion

SCHEMA = 1


def build_result(
    benchmark: Benchmark,
    tasks: dict[str, Task],
    outcomes: dict[str, Outcome],
    *,
    checkpoint: dict,
    remarks: dict[str, int],
    captions: dict[str, int] | None = None,
    identities: Mapping[ImageRef, str] | None = None,
) -> dict:
    """The result as a plain dict.

    ``subsets`` holds per subset: metrics (value, low, high in 0..1), the same by ``groups`` of items,
    items, expected, complete, ties, dropped by reason, per-item outcomes as strings of 0 and 1.
    ``summary`` holds the averages over subsets, ``headlines`` the numbers that the authors report, by
    their words. ``complete`` is true where every expected item of every expected subset was scored; a
    subset beyond those (Flickr8k, CIFAR-10) has its own ``complete``.

    Args:
        remarks: counts of unusual images. captions: ``unique`` and ``cut`` ones.
        identities: image -> hash of its content.
    """
    subsets = {name: _subset(tasks[name], outcome, identities or {}) for name, outcome in outcomes.items()}
    sizes = [task.expected for task in tasks.values()]
    known = None if None in sizes else sum(filter(None, sizes))
    counted = [name for name in subsets if name in benchmark.expected] or list(subsets)
    summary = _summary(benchmark, outcomes)
    return {
        "schema": SCHEMA,
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "checkpoint": checkpoint,
        "complete": set(benchmark.expected) <= subsets.keys()
        and all(subsets[name]["complete"] for name in counted),
        "items": sum(subsets[name]["items"] for name in counted),
        "expected": sum(benchmark.expected.values()) or known,
        "limit": max((task.limited or 0 for task in tasks.values()), default=0) or None,
        "headlines": list(_headlines(benchmark, summary, subsets)),
        "summary": summary,
        "subsets": subsets,
        "images": remarks,
        "captions": captions or {},
        "tie_rule": TIE_RULE,
        "equal_rule": EQUAL_RULE,
        "ties": sum(outcome.ties for outcome in outcomes.values()),
        "intervals": "95%: Wilson for accuracies, percentile bootstrap over items for means",
        "versions": versions(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def _subset(task: Task, outcome: Outcome, identities: Mapping[ImageRef, str]) -> dict:
    subset = {
        "metrics": _clean(outcome.metrics),
        "groups": _clean(outcome.groups),
        "items": outcome.items,
        "expected": task.expected,
        "complete": task.whole,
        "ties": outcome.ties,
        "equal": outcome.equal,
        "dropped": dict(task.dropped),
        "named": task.named,
        "note": task.note,
        "items_hash": task.items_hash(identities),
        "outcomes": {name: "".join("01"[bool(x)] for x in right) for name, right in outcome.right.items()},
    }
    if outcome.histograms:
        subset["histograms"] = outcome.histograms
    return subset


def _clean(value):
    """JSON has no NaN: an undefined number is null, however deep it lies."""
    if isinstance(value, dict):
        return {name: _clean(x) for name, x in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def _summary(benchmark: Benchmark, outcomes: dict[str, Outcome]) -> dict[str, dict]:
    """Averages over the benchmark's groups, only where every subset has items."""
    summary: dict[str, dict] = {}
    if benchmark.groups is None:
        return summary
    leaves = tree_leaves(benchmark.groups)
    if any(name not in outcomes or outcomes[name].items == 0 for name in leaves):
        return summary
    for average, metric in benchmark.averages:
        # a metric that some subsets do not have, as top-5 of two classes, is averaged over the others
        lacking = any(metric not in outcomes[name].right for name in leaves)
        groups = tuple(x for x in leaves if metric in outcomes[x].right) if lacking else benchmark.groups
        summary[average] = _mean(outcomes, metric, groups)
    for average, metric in benchmark.flat_averages:
        summary[average] = _mean(outcomes, metric, tuple(leaves))
    for average, metric in benchmark.pooled:
        summary[average] = _pooled(outcomes, metric, leaves)
    return summary


def _mean(outcomes: dict[str, Outcome], metric: str, groups: tuple) -> dict:
    """Mean over a tree of subsets, with a bootstrap interval."""
    names = tree_leaves(groups)
    rights = [outcomes[name].right[metric] for name in names]
    low, high = bootstrap_interval(
        [(int(right.sum()), len(right)) for right in rights],
        lambda drawn: tree_mean(groups, dict(zip(names, drawn))),
    )
    value = tree_mean(groups, {name: right.mean() for name, right in zip(names, rights)})
    return _clean({"value": float(np.asarray(value)), "low": low, "high": high})


def _pooled(outcomes: dict[str, Outcome], metric: str, names: list[str]) -> dict:
    """Accuracy over the items of all subsets."""
    rights = np.concatenate([outcomes[name].right[metric] for name in names])
    return proportion(int(rights.sum()), len(rights))


def _headlines(benchmark: Benchmark, summary: dict, subsets: dict) -> Iterable[dict]:
    """The authors' numbers that this run has."""
    averaged = sum(subsets[name]["items"] for name in tree_leaves(benchmark.groups or ()) if name in subsets)
    for headline in benchmark.headlines:
        if not headline.subset:
            place, items = summary, averaged
        else:
            part = subsets.get(headline.subset, {})
            part = part.get("groups", {}).get(headline.group, {}) if headline.group else part
            place, items = part.get("metrics", {}), part.get("items", 0)
        if headline.metric in place and place[headline.metric]["value"] is not None:
            yield {"label": headline.label, **place[headline.metric], "items": items}


def partial_subsets(result: dict) -> list[str]:
    """The subsets that were scored in part; in a complete benchmark they are beyond the expected ones."""
    return [name for name, subset in result["subsets"].items() if subset["items"] and not subset["complete"]]


def whole_headline(result: dict, label: str) -> bool:
    """Whether one of a result's headlines is of complete data."""
    subsets = [headline.subset for headline in get(result["benchmark"]).headlines if headline.label == label]
    return result["complete"] and not set(subsets) & set(partial_subsets(result))


def compares_names_alone(subset: dict) -> bool:
    """Whether a subset's items are known by their names alone, as in results of older versions."""
    return not subset.get("items_hash", "").startswith(CONTENT)


def why_not_paired(a: dict, b: dict) -> str:
    """Why two results of a subset cannot be compared item by item; empty where they can."""
    if compares_names_alone(a) != compares_names_alone(b):
        return "not known whether the items are the same: one result is of an older version, run it again"
    shared = a["outcomes"].keys() & b["outcomes"].keys()
    lengths = all(len(a["outcomes"][name]) == len(b["outcomes"][name]) for name in shared)
    return "" if lengths and a.get("items_hash") == b.get("items_hash") else "the items differ"


def flat_metrics(result: dict) -> dict[str, float]:
    """``benchmark/subset/metric`` and ``benchmark/overall`` -> value; ``benchmark-partial`` where it is.

    In a complete benchmark, a subset beyond the expected ones that is not whole is ``-partial`` too.
    """
    flat = {}
    partial = f"{result['benchmark']}-partial"
    benchmark = result["benchmark"] if result["complete"] else partial
    for name, subset in result["subsets"].items():
        owner = benchmark if subset["complete"] else partial
        place = owner if name == result["benchmark"] else f"{owner}/{name}"
        for metric, numbers in subset["metrics"].items():
            if numbers["value"] is not None:
                flat[f"{place}/{metric}"] = numbers["value"]
    for average, numbers in result["summary"].items():
        flat[f"{benchmark}/{average}"] = numbers["value"]
    return flat


def versions() -> dict[str, str]:
    """Versions of what decides a result."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"open_clip_triplet": __version__}
    for package in ("open_clip_torch", "torch", "torchvision", "numpy", "pillow", "clip_benchmark"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
