"""Composition beside retention: what training with hard negatives gave, and what it cost.

Retention is what the model had before: retrieval and zero-shot classification.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from open_clip_triplet.evaluation.report.paper import table
from open_clip_triplet.evaluation.report.sources import Results
from open_clip_triplet.evaluation.report.tables import Block, Cell, Row, mark_best

#: (upper heading, heading, sources) of the first table of a report
COLUMNS = (
    ("SugarCrepe", "mean of 7", ("sugarcrepe:overall",)),
    ("SugarCrepe", "over items", ("sugarcrepe:item_weighted",)),
    ("COCO i2t", "R@1", ("retrieval:mscoco:i2t_r1",)),
    ("COCO i2t", "R@5", ("retrieval:mscoco:i2t_r5",)),
    ("COCO t2i", "R@1", ("retrieval:mscoco:t2i_r1",)),
    ("COCO t2i", "R@5", ("retrieval:mscoco:t2i_r5",)),
    ("ImageNet", "top-1", ("zeroshot:imagenet1k:top1",)),
)
COMPOSITION = {
    "SugarCrepe": "sugarcrepe:overall",
    "VALSE": "valse:overall",
    "Winoground group": "winoground:winoground:group",
    "Cola group": "cola:cola:group",
    "TripletData group": "tripletdata:tripletdata:group",
    "SugarCrepe++": "sugarcrepe_pp:overall",
    "BiVLC group": "bivlc:bivlc:group",
    "VisMin group": "vismin:vismin:group",
    "What'sUp": "whatsup:overall",
    "CREPE": "crepe:overall",
    "ColorSwap group": "colorswap:colorswap:group",
    "VL-CheckList": "vl_checklist:overall",
}
RETENTION = {
    "ImageNet top-1": "zeroshot:imagenet1k:top1",
    "18 sets top-1": "zeroshot:overall",
    "COCO i2t R@5": "retrieval:mscoco:i2t_r5",
    "COCO t2i R@5": "retrieval:mscoco:t2i_r5",
    "Flickr30k i2t R@5": "retrieval:flickr30k:i2t_r5",
    "Flickr30k t2i R@5": "retrieval:flickr30k:t2i_r5",
    "Flickr8k i2t R@5": "retrieval:flickr8k:i2t_r5",
    "Flickr8k t2i R@5": "retrieval:flickr8k:t2i_r5",
    "CIFAR-10 top-1": "zeroshot:cifar10:top1",
}
SUGARCREPE_NOTE = (
    "SugarCrepe is printed both ways that papers print it: the mean of its 7 subsets (the paper's), and over "
    "its 7,511 items. In 202 published models the second is 3 points higher in the mean, 5 at most; "
    "compare like with like."
)


def retention_block(results: Results) -> Block | None:
    """SugarCrepe, COCO retrieval and ImageNet of every checkpoint, with the paper's rows that have them."""
    rows = results.rows([sources for *_, sources in COLUMNS], gains=True)
    if not any(cell.value is not None for row in rows for cell in row.cells[:2]):
        return None
    columns = tuple((upper, name) for upper, name, _ in COLUMNS)
    notes = [SUGARCREPE_NOTE, "The paper's rows are from its Tables 4, 5, 7 and 16."]
    notes += results.item_notes(source for *_, sources in COLUMNS for source in sources)
    return Block(
        "retention", "Composition beside retention", columns, mark_best([*rows, *_paper_rows()]), notes
    )


def _paper_rows() -> list[Row]:
    """Rows of Tables 4 and 7 that Tables 5 and 16 have too."""
    sugarcrepe, retained = table("4"), table("5")
    other = {(_plain(group), method): values for (group, method), values in retained.rows().items()}
    rows = []
    for (group, method), values in sugarcrepe.rows().items():
        kept = other.get((_plain(group), method))
        if kept is None:
            continue
        by_source = dict(zip((c.sources for c in sugarcrepe.columns), values))
        by_source.update(zip((c.sources for c in retained.columns), kept))
        rows.append(Row("paper", _plain(group), method, tuple(Cell(by_source.get(s)) for *_, s in COLUMNS)))
    return rows


def _plain(group: str) -> str:
    return group.partition(" (")[0]


@dataclass(frozen=True)
class Standing:
    """A checkpoint's averages in percent; ``front`` where no other is better in both."""

    name: str
    composition: float
    retention: float
    front: bool


@dataclass(frozen=True)
class Leaderboard:
    """Checkpoints by composition, and which metrics the averages are over."""

    standings: tuple[Standing, ...]
    composition: tuple[str, ...]
    retention: tuple[str, ...]
    left_out: tuple[str, ...] = ()


def leaderboard(results: Results) -> Leaderboard | None:
    """The checkpoints that have complete metrics of both kinds; None where fewer than two have.

    An average is over the metrics that all of them have, so that it is of the same things for all.
    """
    measured = {
        name: [_values(results, name, sources) for sources in (COMPOSITION, RETENTION)]
        for name in results.names
    }
    ranked = [name for name, (composed, retained) in measured.items() if composed and retained]
    shared = [
        [label for label in sources if all(label in measured[name][axis] for name in ranked)]
        for axis, sources in enumerate((COMPOSITION, RETENTION))
    ]
    if len(ranked) < 2 or not all(shared):
        return None
    points = {
        name: tuple(float(np.mean([measured[name][axis][m] for m in shared[axis]])) for axis in (0, 1))
        for name in ranked
    }
    standings = [
        Standing(name, point[0], point[1], not any(_dominates(other, point) for other in points.values()))
        for name, point in points.items()
    ]
    standings.sort(key=lambda s: (-s.composition, -s.retention))
    left_out = tuple(name for name in results.names if name not in points)
    return Leaderboard(tuple(standings), tuple(shared[0]), tuple(shared[1]), left_out)


def _values(results: Results, name: str, sources: dict[str, str]) -> dict[str, float]:
    cells = {label: results.cell(name, (source,)) for label, source in sources.items()}
    return {label: cell.value for label, cell in cells.items() if cell.value is not None}


def _dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return all(x >= y for x, y in zip(a, b)) and a != b


def leaderboard_block(results: Results) -> Block | None:
    """The leaderboard as a table."""
    board = leaderboard(results)
    if board is None:
        return None
    rows = [
        Row("measured", "", s.name, (Cell(s.composition), Cell(s.retention), Cell(text="yes" if s.front else "")))
        for s in board.standings
    ]
    notes = [
        f"Composition: mean of {', '.join(board.composition)}. Retention: mean of "
        f"{', '.join(board.retention)}. These are the metrics that all of them have.",
        "Pareto front: no other checkpoint is at least as good in both and better in one.",
    ]
    notes += results.item_notes(
        named[label]
        for named, labels in ((COMPOSITION, board.composition), (RETENTION, board.retention))
        for label in labels
    )
    if board.left_out:
        notes.append(f"Left out, for want of complete metrics of both kinds: {', '.join(board.left_out)}.")
    columns = (("", "composition"), ("", "retention"), ("", "Pareto front"))
    return Block("leaderboard", "Leaderboard", columns, mark_best(rows), notes)
