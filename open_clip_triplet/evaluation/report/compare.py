"""Paired tests between checkpoints, as tables."""

from __future__ import annotations

import functools

import numpy as np

from open_clip_triplet.evaluation.benchmarks import get
from open_clip_triplet.evaluation.benchmarks.base import tree_leaves, tree_mean
from open_clip_triplet.evaluation.metrics import mcnemar, paired_bootstrap
from open_clip_triplet.evaluation.report.sources import Results
from open_clip_triplet.evaluation.report.tables import Block, Cell, Row


def comparison_blocks(results: Results) -> list[Block]:
    """Paired tests of every checkpoint against the baseline, where both scored the same items."""
    blocks = []
    for name in results.names:
        if name == results.baseline:
            continue
        rows = []
        for benchmark, result in results.by_name[name].items():
            base = results.by_name[results.baseline].get(benchmark)
            if base is not None:
                rows += _comparison_rows(benchmark, result, base)
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
                "items (p is at least 0.0005). Not corrected for the number of tests."
            ]
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
    mark = "" if ours["complete"] and base["complete"] else " (partial)"
    for subset, a in ours["subsets"].items():
        b = base["subsets"].get(subset)
        if b is None or not a["items"]:
            continue
        if a["items_hash"] != b["items_hash"]:
            rows.append(_unpaired_row(f"{benchmark} {subset}{mark}"))
            continue
        for metric in a["outcomes"].keys() & b["outcomes"].keys():
            x, y = (np.frombuffer(s["outcomes"][metric].encode(), np.uint8) == ord("1") for s in (a, b))
            differences[subset, metric] = x.astype(float) - y
        for metric in (m for m in a["outcomes"] if (subset, m) in differences):
            difference = differences[subset, metric]
            won, lost = int((difference > 0).sum()), int((difference < 0).sum())
            bounds = paired_bootstrap([difference], lambda drawn: drawn[0])
            rows.append(
                _comparison_row(
                    f"{benchmark} {subset} {metric}{mark}", bounds, mcnemar(won, lost), (str(won), str(lost))
                )
            )
    return rows + _average_rows(benchmark, ours, differences, mark)


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
            rows.append(_comparison_row(f"{benchmark} {average}{mark}", bounds, bounds["p"], ("", "")))
    return rows


def _mean_over(groups: tuple, leaves: list[str], drawn: np.ndarray) -> np.ndarray:
    """[leaves, draws] -> [draws] means over the tree."""
    return tree_mean(groups, dict(zip(leaves, drawn)))


def _comparison_row(label: str, bounds: dict, p: float, counts: tuple[str, str]) -> Row:
    values = (Cell(100 * bounds[part], sign=True) for part in ("difference", "low", "high"))
    return Row("measured", "", label, (*(Cell(text=c) for c in counts), *values, Cell(text=_p_text(p))))


def _unpaired_row(label: str) -> Row:
    return Row("measured", "", label, (*([Cell()] * 5), Cell(text="no test: the items differ")))


def _p_text(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"
