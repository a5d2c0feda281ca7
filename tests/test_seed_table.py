"""Means over seeds: what an evaluation's results become, by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import seed_table

SUBSETS = ("replace_obj", "replace_att", "replace_rel", "swap_obj", "swap_att", "add_obj", "add_att")


def result(name: str, benchmark: str, items_hash: str = "x", **outcomes: dict[str, str]) -> dict:
    subsets = {
        subset: {"items": len(next(iter(right.values()))), "items_hash": items_hash, "outcomes": right}
        for subset, right in outcomes.items()
    }
    return {"checkpoint": {"name": name}, "benchmark": benchmark, "subsets": subsets}


def sugarcrepe(name: str, first: str, others: str) -> dict:
    return result(name, "sugarcrepe", **{s: {"accuracy": first if s == SUBSETS[0] else others} for s in SUBSETS})


def cells(page: str, line: str) -> list[str]:
    return [row.strip("| ").split(" | ")[1:] for row in page.splitlines() if row.startswith(f"| {line}")]


def test_subsets_are_averaged_seeds_are_shown_and_differences_are_paired():
    results = [
        sugarcrepe("start", "0000", "11"),
        sugarcrepe("clip-0", "1111", "11"), sugarcrepe("clip-1", "1100", "11"),
        sugarcrepe("ours-0", "1111", "10"), sugarcrepe("ours-1", "1111", "10"),
        *(result(name, "retrieval", flickr8k={"i2t_r1": right}) for name, right in (
            ("start", "0001"), ("clip-0", "0011"), ("clip-1", "0001"), ("ours-0", "1111"), ("ours-1", "0111"))),
    ]  # fmt: skip
    page = seed_table.tables(results, "clip", "start")
    assert "| score | start | clip | ours |" in page
    values, to_clip, to_start = cells(page, "SugarCrepe, mean of 7 (16 items)")
    # six subsets are all right and one is at 4/4 and 2/4; ours: one is all right and six are at 1/2
    assert values[0].startswith("85.7 [85.7, 85.7]") and "(" not in values[0]
    assert values[1].startswith("96.4 [") and values[1].endswith("(100.0 92.9)")
    assert values[2].startswith("57.1 [") and values[2].endswith("(57.1 57.1)")
    assert len(to_clip) == 1 and to_clip[0].startswith("-39.3 [") and to_clip[0].endswith("(-42.9 -35.7)")
    assert len(to_start) == 2 and to_start[1].startswith("-28.6 [")
    over_items, *_ = cells(page, "SugarCrepe, over items (16)")
    assert over_items[1].endswith("(100.0 87.5)") and over_items[2].endswith("(62.5 62.5)")
    retrieval = [row for row in page.splitlines() if "flickr8k, i2t_r1 (4)" in row]
    assert len(retrieval) == 3 and "37.5 [" in retrieval[0] and "+50.0 [" in retrieval[1]


def test_the_baseline_alone_has_no_differences():
    page = seed_table.tables([sugarcrepe("clip-0", "1", "1")], "clip")
    assert "100.0 [100.0, 100.0]" in page and "Differences" not in page


def test_seeds_are_drawn_together_and_items_apart():
    """Parts that differ between seeds alike: a mean of them varies as one of them does."""
    whole, half = (seed_table.Part(np.array([[0.0] * 50, [1.0] * 50]), weight) for weight in (1, 0.5))
    assert seed_table.mean_interval(whole) == (0.5, 0.0, 1.0) == seed_table.mean_interval(half, half)
    whole, half = (seed_table.Part(np.tile([0.0, 1.0], (2, 50)), weight) for weight in (1, 0.5))
    (_, low, high), (_, low2, high2) = seed_table.mean_interval(whole), seed_table.mean_interval(half, half)
    assert high2 - low2 < 0.8 * (high - low)


def test_a_mean_weighs_subsets_as_the_benchmark_does():
    """VALSE's mean is over 7 groups: plurals is one of them, coreference-standard half of one."""
    from open_clip_triplet.evaluation.benchmarks import get

    groups = get("valse").groups
    weights = {name: seed_table._weight(groups, name) for name in seed_table.tree_leaves(groups)}
    assert sum(weights.values()) == pytest.approx(1) and len(weights) == 11
    assert weights["plurals"] == pytest.approx(1 / 7) and weights["coreference-standard"] == pytest.approx(1 / 14)


@pytest.mark.parametrize(
    ("results", "words"),
    [
        ([sugarcrepe("a-0", "1", "1")], "no results of clip-SEED; there are: a"),
        ([sugarcrepe("clip-0", "1", "1"), sugarcrepe("a-1", "1", "1")], "different seeds"),
        ([sugarcrepe("clip-0", "1", "1"), result("clip-0", "cola", cola={"group": "1"}), sugarcrepe("a-0", "1", "1")],
         "not evaluated on the same benchmarks"),
        ([result("clip-0", "cola", cola={"group": "1"}), result("clip-1", "cola", "y", cola={"group": "1"})],
         "the items differ"),
        ([result("clip-0", "cola", cola={"group": "1"}), result("a-0", "cola", "y", cola={"group": "1"})],
         "the items differ"),
    ],
)  # fmt: skip
def test_what_cannot_be_averaged_is_refused(results, words):
    with pytest.raises(SystemExit, match=words):
        seed_table.tables(results, "clip")
