"""Metrics as pure numpy functions. A tie counts as wrong everywhere; NaN and infinity are refused."""

from open_clip_triplet.evaluation.metrics.arrays import finite
from open_clip_triplet.evaluation.metrics.averages import (
    DRAWS,
    FEWEST_ITEMS,
    bootstrap_interval,
    mcnemar,
    paired_bootstrap,
    wilson_interval,
)
from open_clip_triplet.evaluation.metrics.composition import (
    composition_correct,
    composition_ties,
    histogram,
    pair_similarities,
    row_similarities,
)
from open_clip_triplet.evaluation.metrics.ranking import (
    Ranking,
    class_ranks,
    rank_answers,
    retrieval_ranks,
)

TIE_RULE = "a tie counts as wrong (the SugarCrepe authors' rule; clip_benchmark counts it as right)"
EQUAL_RULE = "captions, or class names, that are equal to a right answer count as right too"

__all__ = [
    "DRAWS",
    "EQUAL_RULE",
    "FEWEST_ITEMS",
    "Ranking",
    "TIE_RULE",
    "bootstrap_interval",
    "class_ranks",
    "composition_correct",
    "composition_ties",
    "finite",
    "histogram",
    "mcnemar",
    "pair_similarities",
    "paired_bootstrap",
    "rank_answers",
    "retrieval_ranks",
    "row_similarities",
    "wilson_interval",
]
