"""The numbers that the authors of each benchmark report, in their words, of every checkpoint."""

from __future__ import annotations

from open_clip_triplet.evaluation.report.reference import twofold_notes
from open_clip_triplet.evaluation.report.sources import PARTIAL, Results
from open_clip_triplet.evaluation.report.tables import Block, Cell, Row


def headline_blocks(results: Results) -> list[Block]:
    """A table per benchmark: a row per headline of its authors, a column per checkpoint."""
    blocks = [_block(results, benchmark) for benchmark in results.benchmarks()]
    return [block for block in blocks if block is not None]


def _block(results: Results, benchmark: str) -> Block | None:
    found = {name: results.by_name[name].get(benchmark) for name in results.names}
    found = {name: result for name, result in found.items() if result is not None}
    by_label: dict[str, dict[str, Cell]] = {}
    for name, result in found.items():
        for headline in result.get("headlines", ()):
            by_label.setdefault(headline["label"], {})[name] = _cell(headline, result)
    if not by_label:
        return None
    first = next(iter(found.values()))
    rows = [
        Row("measured", "", label, tuple(cells.get(name, Cell()) for name in found))
        for label, cells in by_label.items()
    ]
    notes = twofold_notes([benchmark])
    if any(cell.text == PARTIAL for row in rows for cell in row.cells):
        notes.append("partial: not all items were there; see the partial runs below.")
    columns = tuple(("", name) for name in found)
    return Block(f"headlines {benchmark}", f"{first['title']}: its authors' numbers", columns, rows, notes)


def _cell(headline: dict, result: dict) -> Cell:
    if not result["complete"]:
        return Cell(text=PARTIAL)
    return Cell(*(None if headline[x] is None else 100 * headline[x] for x in ("value", "low", "high")))
