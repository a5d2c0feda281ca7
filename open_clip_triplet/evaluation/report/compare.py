"""Paired tests between checkpoints, as tables."""

from __future__ import annotations

import functools
import math

import numpy as np

from open_clip_triplet.evaluation.benchmarks import get
from open_clip_triplet.evaluation.benchmarks.base import tree_leaves, tree_mean
from open_clip_triplet.evaluation.metrics import FEWEST_ITEMS, mcnemar, paired_bootstrap
from open_clip_triplet.evaluation.report.sources import Results
from open_clip_triplet.evaluation.report.tables import Block, Cell, Row
from open_clip_triplet.evaluation.results import compares_names_alone, why_not_paired


def comparison_blocks(results: Results) -> list[Block]:
    """Paired tests of every checkpoint against the baseline, where both scored the same items."""
    blocks = []
    for name in results.names:
        if name == results.baseline:
            continue
        rows: list[Row] = []
        old: list[str] = []
        for benchmark, result in results.by_name[name].items():
            base = results.by_name[results.baseline].get(benchmark)
            if base is not None:
                rows += _comparison_rows(benchmark, result, base)
                parts = [*result["subsets"].values(), *base["subsets"].values()]
                old += [result["title"]] * all(map(compares_names_alone, parts))
        if rows:
            columns = (
                ("only right:", name),
                ("only right:", results.baseline),
                ("", "difference"),
                ("95%", "low"),
                ("95%", "high"),
                ("", "p"),
            )
            notes = [
                "Accuracies: exact McNemar test on the discordant items. Averages: paired bootstrap over "
                "items (p is at least 0.0005). Not corrected for the number of tests. No test where a subset has "
                f"fewer than {FEWEST_ITEMS} items."
            ]
            if old:
                notes.append(
                    f"{', '.join(old)}: items paired by their names alone, as the results are of an older version; "
                    "whether captions and images are the same is known after another run."
                )
            blocks.append(
                Block(
                    f"{name} vs {results.baseline}",
                    f"{name} against {results.baseline}, paired",
                    columns,
                    rows,
                    notes,
                )
            )
    return blocks


def _comparison_rows(benchmark: str, ours: dict, base: dict) -> list[Row]:
    rows, differences = [], {}
    whole = ours["complete"] and base["complete"]
    for subset, a in ours["subsets"].items():
        b = base["subsets"].get(subset)
        if b is None or not a["items"]:
            continue
        mark = "" if whole and a["complete"] and b["complete"] else " (partial)"
        if why := why_not_paired(a, b):
            rows.append(_unpaired_row(f"{benchmark} {subset}{mark}", why))
            continue
        for metric in (m for m in a["outcomes"] if m in b["outcomes"]):
            x, y = (np.frombuffer(s["outcomes"][metric].encode(), np.uint8) == ord("1") for s in (a, b))
            difference = differences[subset, metric] = x.astype(float) - y
            won, lost = int((difference > 0).sum()), int((difference < 0).sum())
            bounds = paired_bootstrap([difference], lambda drawn: drawn[0])
            label = f"{benchmark} {subset} {metric}{mark}"
            test = _test(mcnemar(won, lost), [subset] * (len(difference) < FEWEST_ITEMS))
            rows.append(_comparison_row(label, bounds, test, (str(won), str(lost))))
    return rows + _average_rows(benchmark, ours, differences, "" if whole else " (partial)")


def _average_rows(benchmark: str, ours: dict, differences: dict, mark: str) -> list[Row]:
    described = get(benchmark)
    rows = []
    for average, metric in described.averages:
        if average not in ours["summary"]:
            continue
        tree = described.groups or ()
        leaves = [x for x in tree_leaves(tree) if metric in ours["subsets"][x]["outcomes"]]
        groups = tree if average == "overall" else tuple(leaves)
        if all((leaf, metric) in differences for leaf in leaves):
            parts = [differences[leaf, metric] for leaf in leaves]
            bounds = paired_bootstrap(parts, functools.partial(_mean_over, groups, leaves))
            few = [leaf for leaf, part in zip(leaves, parts) if len(part) < FEWEST_ITEMS]
            rows.append(
                _comparison_row(f"{benchmark} {average}{mark}", bounds, _test(bounds["p"], few), ("", ""))
            )
    return rows


def _mean_over(groups: tuple, leaves: list[str], drawn: np.ndarray) -> np.ndarray:
    """[leaves, draws] -> [draws] means over the tree."""
    return tree_mean(groups, dict(zip(leaves, drawn)))


def _comparison_row(label: str, bounds: dict, test: str, counts: tuple[str, str]) -> Row:
    values = (
        Cell(None if math.isnan(bounds[part]) else 100 * bounds[part], sign=True)
        for part in ("difference", "low", "high")
    )
    return Row("measured", "", label, (*(Cell(text=c) for c in counts), *values, Cell(text=test)))


def _unpaired_row(label: str, why: str) -> Row:
    return Row("measured", "", label, (*([Cell()] * 5), Cell(text=f"no test: {why}")))


def _test(p: float, few: list[str]) -> str:
    """p as printed, or which subsets have too few items for it."""
    if few:
        return f"no test: fewer than {FEWEST_ITEMS} items in {', '.join(few)}"
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"
