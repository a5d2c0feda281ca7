"""The figures of the page: which of the results each plot shows."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from open_clip_triplet.evaluation.benchmarks import get
from open_clip_triplet.evaluation.benchmarks.base import tree_leaves, tree_mean
from open_clip_triplet.evaluation.report import plots
from open_clip_triplet.evaluation.report.contents import Report
from open_clip_triplet.evaluation.report.coverage import coverage_series
from open_clip_triplet.evaluation.report.reference import known_models
from open_clip_triplet.evaluation.report.retention import COMPOSITION, RETENTION, leaderboard
from open_clip_triplet.evaluation.report.sources import Results
from open_clip_triplet.evaluation.results import partial_subsets

#: benchmark -> (metric of the bars, accuracy of guessing in percent or None)
BARS = {
    "sugarcrepe": ("accuracy", 50),
    "valse": ("accuracy", 50),
    "aro": ("accuracy", 50),
    "sugarcrepe_pp": ("accuracy", 100 / 3),
    "negbench": ("accuracy", 25),
    "zeroshot": ("top1", None),
    "vl_checklist": ("accuracy", 50),
    "svo_probes": ("accuracy", 50),
    "whatsup": ("accuracy", None),
    "crepe": ("accuracy", None),
    "spec": ("accuracy", None),
    "mmvp_vlm": ("image", 25),
    "eqben": ("group", 100 / 6),
}
#: benchmarks of more subsets than this are drawn by the top nodes of their tree
MOST_BARS = 24
#: axes of the radar, of the leaderboard's metrics
RADAR = (
    "SugarCrepe", "VALSE", "Winoground group", "Cola group", "What'sUp", "COCO i2t R@5", "COCO t2i R@5",
    "Flickr30k i2t R@5", "Flickr30k t2i R@5", "Flickr8k i2t R@5", "Flickr8k t2i R@5", "18 sets top-1",
    "CIFAR-10 top-1", "TripletData group",
)
#: below this mean, in percent, a radar is a dot: bars are drawn instead
NEAR_ZERO = 20


@dataclass(frozen=True)
class Figure:
    """A plot and its title. ``legend``: names of its series where they are not the checkpoints."""

    title: str
    svg: str
    legend: tuple[str, ...] = ()
    wide: bool = False


def shown_names(results: Results) -> list[str]:
    """The checkpoints that plots show: as many as there are colours, the baseline, then the leaderboard's first."""
    if len(results.names) <= plots.SERIES:
        return results.names
    board = leaderboard(results)
    ranked = [standing.name for standing in board.standings] if board else []
    return list(dict.fromkeys([results.baseline, *ranked, *results.names]))[: plots.SERIES]


def figures(report: Report) -> list[Figure]:
    """All figures, in the order of the page."""
    results = report.results
    names = shown_names(results)
    known = _among_known(results, names) if report.reference is not None else None
    found = [_coverage(report), _pareto(results, names), known, _radar(results, names)]
    for benchmark in results.benchmarks():
        kept = [results.by_name[name].get(benchmark) for name in names]
        found.append(_bars(benchmark, kept))
        if benchmark == "tripletdata":
            found += _histograms(benchmark, kept)
    return [figure for figure in found if figure is not None]


def _coverage(report: Report) -> Figure | None:
    panels = coverage_series(report.results, report.coverage)
    if not panels:
        return None
    methods = tuple(dict.fromkeys(method for _, series in panels for method in series))
    return Figure("Scores by concept coverage (Figure 3)", plots.lines(panels), methods, wide=True)


def _pareto(results: Results, names: list[str]) -> Figure | None:
    board = leaderboard(results)
    if board is None:
        return None
    colours = {name: index for index, name in enumerate(names)}
    points = [(s.name, s.composition, s.retention, s.front, colours.get(s.name)) for s in board.standings]
    return Figure("Composition against retention (dashed: Pareto front)", plots.pareto(points))


def _among_known(results: Results, names: list[str]) -> Figure | None:
    """Ours among all published models: SugarCrepe against ImageNet, or COCO where that was not measured."""
    up = "sugarcrepe:overall"
    for name, right in (
        ("ImageNet top-1", "zeroshot:imagenet1k:top1"),
        ("COCO t2i R@1", "retrieval:mscoco:t2i_r1"),
    ):
        cells = [(n, results.cell(n, (up,)).value, results.cell(n, (right,)).value) for n in names]
        ours = [(n, y, x, False, i) for i, (n, y, x) in enumerate(cells) if y is not None and x is not None]
        if ours:
            models: list[Any] = [(m.label, m.value(up), m.value(right), False, None) for m in known_models("all")]
            published = [point for point in models if point[1] is not None and point[2] is not None]
            title = f"SugarCrepe against {name}, among {len(published)} published models (grey)"
            return Figure(title, plots.pareto([*published, *ours], "SugarCrepe, mean of 7", name))
    return None


def _mark(found: list[dict | None]) -> str:
    return ", PARTIAL" if any(r and (not r["complete"] or partial_subsets(r)) for r in found) else ""


def _bars(benchmark: str, found: list[dict | None]) -> Figure | None:
    results = [result for result in found if result]
    subsets = [
        s
        for s in dict.fromkeys(s for r in results for s in r["subsets"])
        if any(r["subsets"].get(s, {}).get("items") for r in results)
    ]
    if benchmark in BARS and len(subsets) > MOST_BARS:
        return _tree_bars(benchmark, found)
    if benchmark in BARS:
        metric, chance = BARS[benchmark]
        places = [(subset.replace("_", " "), subset, metric) for subset in subsets]
    else:
        chance = None
        metrics = dict.fromkeys(m for r in results for s in r["subsets"].values() for m in s["metrics"])
        words = {m: m.replace("_r", " R@") for m in metrics}
        places = [
            (f"{s} {words[m]}" if len(subsets) > 1 else words[m], s, m) for s in subsets for m in metrics
        ]
    places = [p for p in places if any(_triple(result, *p[1:]) for result in results)]
    if not places:
        return None
    values = [[_triple(result, subset, metric) for _, subset, metric in places] for result in found]
    title = f"{get(benchmark).title}{_mark(found)}"
    return Figure(title, plots.bars([label for label, _, _ in places], values, chance))


def _tree_bars(benchmark: str, found: list[dict | None]) -> Figure | None:
    """A bar per top node of the benchmark's tree that has all its subsets; no interval."""
    metric, chance = BARS[benchmark]
    nodes = get(benchmark).groups or ()
    rows = []
    for node in nodes:
        leaves = tree_leaves([node])
        values = [[_triple(result, leaf, metric) for leaf in leaves] for result in found]
        means = []
        for triples in values:
            known = [np.asarray(triple[0]) for triple in triples if triple is not None]
            whole = len(known) == len(leaves)
            means.append(float(tree_mean([node], dict(zip(leaves, known)))) if whole else None)
        if any(mean is not None for mean in means):
            name = os.path.commonprefix(leaves) if len(leaves) > 1 else leaves[0].rpartition("_")[0]
            rows.append((name.rpartition("_")[0] if len(leaves) > 1 else name, means))
    if not rows:
        return None
    bars = [[None if m[i] is None else (m[i],) * 3 for _, m in rows] for i in range(len(found))]
    names = [name.replace("_", " ") for name, _ in rows]
    return Figure(f"{get(benchmark).title}{_mark(found)}", plots.bars(names, bars, chance))


def _triple(result: dict | None, subset: str, metric: str) -> tuple | None:
    numbers = ((result or {"subsets": {}})["subsets"].get(subset) or {"metrics": {}})["metrics"].get(metric)
    if not numbers or numbers["value"] is None:
        return None
    low, high = (numbers["value"] if numbers[x] is None else numbers[x] for x in ("low", "high"))
    return tuple(100 * x for x in (numbers["value"], low, high))


def _radar(results: Results, names: list[str]) -> Figure | None:
    sources = {**COMPOSITION, **RETENTION}
    found = {label: [results.metric(name, sources[label]) for name in names] for label in RADAR}
    found = {label: metrics for label, metrics in found.items() if any(metrics)}
    if len(found) < 3:
        return None
    partial = {
        label
        for label, metrics in found.items()
        for name, metric in zip(names, metrics)
        if metric and not (metric[1] and results.by_name[name][sources[label].partition(":")[0]]["complete"])
    }
    labels = [label + ("*" if label in partial else "") for label in found]
    series = [[m and 100 * m[0]["value"] for m in of_name] for of_name in zip(*found.values())]
    title = "The suite" + (" (* partial run)" if partial else "")
    known = [v for values in series for v in values if v is not None]
    if sum(known) / len(known) < NEAR_ZERO:
        return Figure(
            title,
            plots.bars(labels, [[None if v is None else (v, v, v) for v in values] for values in series]),
        )
    return Figure(title, plots.radar(labels, series))


def _histograms(benchmark: str, found: list[dict | None]) -> list[Figure]:
    kept = [
        next(
            (s["histograms"] for s in (result or {"subsets": {}})["subsets"].values() if s.get("histograms")),
            None,
        )
        for result in found
    ]
    edges = next((histogram["edges"] for histogram in kept if histogram), None)
    if edges is None:
        return []
    parts = []
    for modality, what in (("image", "images"), ("text", "captions")):
        counts = [histogram[modality] if histogram else [0] * (len(edges) - 1) for histogram in kept]
        title = f"{get(benchmark).title}: positive and negative {what}{_mark(found)}"
        parts.append(Figure(title, plots.histograms(edges, counts)))
    return parts
