#!/usr/bin/env python
"""Results of ``triplet-evaluate run`` over several seeds as one page: means, intervals and each seed.

Checkpoints are called ROW-SEED. Two tables: every row's scores, and its differences to the baseline at the same seed.
Intervals are 95%, of a bootstrap that draws both seeds and items; a mean over subsets draws each subset's items.

  python tools/seed_table.py matched --start start --baseline clip --output matched.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from open_clip_triplet.evaluation.benchmarks import get
from open_clip_triplet.evaluation.benchmarks.base import tree_leaves, tree_mean
from open_clip_triplet.evaluation.result_files import read_results
from open_clip_triplet.evaluation.results import why_not_paired
from open_clip_triplet.files import write_text_durably

DRAWS = 1000
#: metrics of benchmarks whose subsets are not averaged
METRICS = ("text", "image", "group", "i2t_r1", "i2t_r5", "t2i_r1", "t2i_r5", "top1")


class Part(NamedTuple):
    """``right``: [seeds, items] whether an item is right; ``weight``: share in the mean that it is part of."""

    right: np.ndarray
    weight: float = 1.0


#: what each metric is the weighted mean of
Scores = dict[str, list[Part]]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="output folder of triplet-evaluate run")
    parser.add_argument("--start", help="checkpoint that all rows started from")
    parser.add_argument("--baseline", required=True, help="row that the others are compared with")
    parser.add_argument("--output", type=Path, help="Markdown file (the screen)")
    args = parser.parse_args(argv)
    page = tables(read_results([args.results]), args.baseline, args.start)
    if args.output:
        write_text_durably(args.output, page)
    else:
        print(page)
    return 0


def mean_interval(*parts: Part) -> tuple[float, float, float]:
    """(mean, low, high) of the weighted mean of parts, 95%: both seeds and items are drawn again.

    The seeds drawn are the same for all parts. With three seeds the interval is narrow where the seeds happen to
    agree: print each seed too.
    """
    rng = np.random.default_rng(0)
    seeds = len(parts[0].right)
    means = []
    for _ in range(DRAWS):
        drawn = rng.integers(seeds, size=seeds)
        items = (rng.integers(part.right.shape[1], size=part.right.shape[1]) for part in parts)
        means.append(sum(part.weight * part.right[drawn][:, chosen].mean() for part, chosen in zip(parts, items)))
    low, high = np.quantile(means, [0.025, 0.975])
    return float(sum(part.weight * part.right.mean() for part in parts)), float(low), float(high)


def tables(results: list[dict], baseline: str, start: str | None = None) -> str:
    """The page.

    Raises:
        SystemExit: no row is called as the baseline, or rows were not evaluated alike.
    """
    rows: dict[str, list[str]] = {}
    for name in sorted({result["checkpoint"]["name"] for result in results}):
        row, _, seed = name.rpartition("-")
        rows.setdefault(row if row and seed.isdecimal() else name, []).append(name)
    if baseline not in rows:
        raise SystemExit(f"no results of {baseline}-SEED; there are: {', '.join(rows)}")
    # the start, the baseline, the others
    order = sorted(rows, key=lambda row: (row != start, row != baseline, row))
    scores = {row: row_scores(results, rows[row]) for row in order}
    if len({tuple(found) for found in scores.values()}) > 1:
        raise SystemExit("the rows were not evaluated on the same benchmarks: evaluate them again in one command")
    seeds = {row: [name.rpartition("-")[2] for name in names] for row, names in rows.items() if row != start}
    if len(set(map(tuple, seeds.values()))) > 1:
        raise SystemExit(f"the rows have different seeds: {seeds}")
    others = [row for row in order if row not in (start, baseline)]
    parts = [_table("score", scores, order, lambda row, name: scores[row][name], sign="")]
    for base, compared in ((baseline, others), (start, [baseline, *others])):
        if base and compared:
            differences = _differences(scores, base)
            parts += [f"Differences to {base}:", _table("score", scores, compared, differences, sign="+")]
    return "\n\n".join(parts) + "\n"


def row_scores(results: list[dict], names: list[str]) -> Scores:
    """The scores of one row, whose checkpoints are ``names``."""
    found: Scores = {}
    for benchmark in dict.fromkeys(result["benchmark"] for result in results):
        of_seed = {r["checkpoint"]["name"]: r for r in results if r["benchmark"] == benchmark}
        _require_same_items(benchmark, list(of_seed.values()))
        runs = [of_seed[name] for name in names if name in of_seed]
        if len(runs) == len(names):
            found |= _benchmark_scores(benchmark, runs)
    return found


def _require_same_items(benchmark: str, runs: list[dict]) -> None:
    first = runs[0]["subsets"]
    for subsets in (run["subsets"] for run in runs):
        for name in first.keys() & subsets.keys():
            if why := why_not_paired(first[name], subsets[name]):
                raise SystemExit(f"{benchmark} {name}, the checkpoints cannot be compared: {why}")


def _benchmark_scores(benchmark: str, runs: list[dict]) -> Scores:
    described, subsets = get(benchmark), runs[0]["subsets"]
    scored = [name for name, subset in subsets.items() if subset["items"]]
    found: Scores = {}
    leaves = tree_leaves(described.groups or ())
    if described.averages and leaves and set(leaves) <= set(scored):
        metric = described.averages[0][1]
        parts = [Part(_right(runs, name, metric), _weight(described.groups, name)) for name in leaves]
        items = sum(part.right.shape[1] for part in parts)
        found[f"{described.title}, mean of {len(described.groups)} ({items} items)"] = parts
        if any(pooled == metric for _, pooled in described.pooled):
            by_items = [Part(part.right, part.right.shape[1] / items) for part in parts]
            found[f"{described.title}, over items ({items})"] = by_items
        scored = [name for name in scored if name not in leaves]
    for name in scored:
        for metric in (metric for metric in METRICS if metric in subsets[name]["outcomes"]):
            right = _right(runs, name, metric)
            found[f"{described.title} {name}, {metric} ({right.shape[1]})"] = [Part(right)]
    return found


def _weight(groups: Iterable, subset: str) -> float:
    """Share of a subset in the benchmark's mean."""
    return float(tree_mean(groups, {name: np.float64(name == subset) for name in tree_leaves(groups)}))


def _right(runs: list[dict], subset: str, metric: str) -> np.ndarray:
    """[seeds, items] whether an item is right."""
    strings = [run["subsets"][subset]["outcomes"][metric] for run in runs]
    return np.array([[character == "1" for character in string] for string in strings], dtype=float)


def _differences(scores: dict[str, Scores], base: str):
    """A row's lead over the base, item by item; seed by seed where the base has as many."""
    return lambda row, name: [
        Part(ours.right - theirs.right, ours.weight) for ours, theirs in zip(scores[row][name], scores[base][name])
    ]


def _table(corner: str, scores: dict[str, Scores], rows: Iterable[str], values, sign: str) -> str:
    """Markdown: a line per metric, a column per row, in percent: mean [low, high] and each seed."""
    rows = list(rows)
    lines = [f"| {corner} | {' | '.join(rows)} |", "|---|" + "---|" * len(rows)]
    for name in scores[rows[0]]:
        cells = []
        for row in rows:
            parts = values(row, name)
            mean, low, high = (f"{100 * x:{sign}.1f}" for x in mean_interval(*parts))
            by_seed = sum(part.weight * part.right.mean(1) for part in parts)
            each = " ".join(f"{100 * x:{sign}.1f}" for x in by_seed)
            cells.append(f"{mean} [{low}, {high}]" + f" ({each})" * (len(by_seed) > 1))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
