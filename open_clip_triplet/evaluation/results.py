"""A result: one JSON per checkpoint and benchmark, complete enough to be reported and compared later."""

from __future__ import annotations

import datetime
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from open_clip_triplet import __version__
from open_clip_triplet.evaluation.benchmarks.base import Benchmark, tree_leaves, tree_mean
from open_clip_triplet.evaluation.metrics import TIE_RULE, bootstrap_interval
from open_clip_triplet.evaluation.tasks import Outcome, Task
from open_clip_triplet.files import write_text_durably

SCHEMA = 1


def build_result(
    benchmark: Benchmark,
    tasks: dict[str, Task],
    outcomes: dict[str, Outcome],
    *,
    checkpoint: dict,
    remarks: dict[str, int],
) -> dict:
    """The result as a plain dict.

    ``subsets`` holds per subset: metrics (value, low, high in 0..1), items, expected, ties, dropped by
    reason, per-item outcomes as strings of 0 and 1. ``summary`` holds the averages over subsets.
    ``complete`` is true where every expected item of every expected subset was scored.
    """
    subsets = {name: _subset(tasks[name], outcome) for name, outcome in outcomes.items()}
    expected = sum(benchmark.expected.values()) or _known_sum(task.expected for task in tasks.values())
    counted = [name for name in subsets if name in benchmark.expected] or list(subsets)
    return {
        "schema": SCHEMA,
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "checkpoint": checkpoint,
        "complete": set(benchmark.expected) <= subsets.keys()
        and all(subsets[name]["complete"] for name in counted),
        "items": sum(subsets[name]["items"] for name in counted),
        "expected": expected,
        "summary": _summary(benchmark, outcomes),
        "subsets": subsets,
        "images": remarks,
        "tie_rule": TIE_RULE,
        "ties": sum(outcome.ties for outcome in outcomes.values()),
        "intervals": "95%: Wilson for accuracies, percentile bootstrap over items for means",
        "versions": versions(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def _known_sum(values: Iterable[int | None]) -> int | None:
    values = list(values)
    return None if None in values else sum(values)


def _subset(task: Task, outcome: Outcome) -> dict:
    subset = {
        "metrics": {name: _clean(metric) for name, metric in outcome.metrics.items()},
        "items": outcome.items,
        "expected": task.expected,
        "complete": outcome.items > 0
        and not task.note
        and (not task.dropped if task.expected is None else outcome.items == task.expected),
        "ties": outcome.ties,
        "dropped": dict(task.dropped),
        "named": task.named,
        "note": task.note,
        "items_hash": outcome.items_hash,
        "outcomes": {name: "".join("01"[bool(x)] for x in right) for name, right in outcome.right.items()},
    }
    if outcome.histograms:
        subset["histograms"] = outcome.histograms
    return subset


def _clean(metric: dict) -> dict:
    """JSON has no NaN: an undefined number is null."""
    return {name: None if isinstance(x, float) and math.isnan(x) else x for name, x in metric.items()}


def _summary(benchmark: Benchmark, outcomes: dict[str, Outcome]) -> dict[str, dict]:
    """Averages over the benchmark's groups, only where every subset has items."""
    summary: dict[str, dict] = {}
    if benchmark.groups is None:
        return summary
    leaves = tree_leaves(benchmark.groups)
    if any(name not in outcomes or outcomes[name].items == 0 for name in leaves):
        return summary
    for average, metric in benchmark.averages:
        groups = benchmark.groups
        if average != "overall":  # a metric that some subsets do not have, as top-5 of two classes
            groups = tuple(name for name in leaves if metric in outcomes[name].right)
        names = tree_leaves(groups)
        rights = [outcomes[name].right[metric] for name in names]
        low, high = bootstrap_interval(
            [(int(right.sum()), len(right)) for right in rights],
            lambda drawn, names=names, groups=groups: tree_mean(groups, dict(zip(names, drawn))),
        )
        value = tree_mean(groups, {name: right.mean() for name, right in zip(names, rights)})
        summary[average] = {"value": float(np.asarray(value)), "low": low, "high": high}
    return summary


def flat_metrics(result: dict) -> dict[str, float]:
    """``benchmark/subset/metric`` and ``benchmark/overall`` -> value; ``benchmark-partial`` where it is."""
    flat = {}
    benchmark = result["benchmark"] + ("" if result["complete"] else "-partial")
    for name, subset in result["subsets"].items():
        place = benchmark if name == result["benchmark"] else f"{benchmark}/{name}"
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


def write_result(folder: str | os.PathLike, result: dict) -> Path:
    """Write ``<folder>/<checkpoint name>/<benchmark>.json`` whole or not at all; returns its path."""
    path = Path(folder) / safe_name(result["checkpoint"]["name"]) / f"{result['benchmark']}.json"
    write_text_durably(path, json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def read_results(paths: Iterable[str | os.PathLike]) -> list[dict]:
    """Results of files and folders, checkpoints in order of first mention.

    Folders are searched whole, but for hidden ones: an embedding store has thousands of files.

    Raises:
        ValueError: nothing found, or a file is not a result of this tool; it is named.
    """
    results = []
    for path in map(Path, paths):
        files = [path] if path.is_file() else sorted(_visible_json(path))
        for file in files:
            try:
                result = json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise ValueError(f"{file}: cannot be read as a result ({error})") from error
            if not isinstance(result, dict) or "benchmark" not in result or "subsets" not in result:
                if file == path:
                    raise ValueError(f"{file}: not a result of triplet-evaluate")
                continue
            if result.get("schema") != SCHEMA:
                raise ValueError(f"{file}: written by another version of this tool; run it again")
            results.append(result)
    if not results:
        raise ValueError(f"no results in {', '.join(map(str, paths))}; make some with `triplet-evaluate run`")
    return results


def _visible_json(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.endswith(".json") and not name.startswith("."):
                yield Path(place) / name


def safe_name(name: str) -> str:
    """A checkpoint's name as a folder name.

    >>> safe_name("ViT-B-32/laion2b")
    'ViT-B-32_laion2b'
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._") or "checkpoint"
