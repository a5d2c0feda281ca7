"""The numbers that the authors of each benchmark report, in their words, of every checkpoint."""

from __future__ import annotations

from open_clip_triplet.evaluation.report.reference import published, twofold_notes
from open_clip_triplet.evaluation.report.sources import PARTIAL, Results, value_cell
from open_clip_triplet.evaluation.report.tables import Block, Cell, Row
from open_clip_triplet.evaluation.results import whole_headline


def headline_blocks(results: Results, reference: bool = False) -> list[Block]:
    """A table per benchmark: a row per headline of its authors, a column per checkpoint.

    With ``reference``, models that the authors print are columns beside ours.
    """
    blocks = [_block(results, benchmark, reference) for benchmark in results.benchmarks()]
    return [block for block in blocks if block is not None]


def _block(results: Results, benchmark: str, reference: bool) -> Block | None:
    found = {name: results.by_name[name].get(benchmark) for name in results.names}
    columns = {
        ("", name): {headline["label"]: _cell(headline, result) for headline in result.get("headlines", ())}
        for name, result in found.items()
        if result is not None
    }
    labels = list(dict.fromkeys(label for cells in columns.values() for label in cells))
    if not labels:
        return None
    notes = [*twofold_notes([benchmark]), *results.item_notes([benchmark])]
    if any(cell.text == PARTIAL for cells in columns.values() for cell in cells.values()):
        notes.append("partial: not all items were there; see the partial runs below.")
    for model in published(benchmark) if reference else ():
        columns["published", model["model"]] = {k: Cell(float(v)) for k, v in model["values"].items()}
        notes.append(f"{model['model']}: {model['source']}.")
    rows = [
        Row("measured", "", label, tuple(cells.get(label, Cell()) for cells in columns.values()))
        for label in labels
    ]
    title = next(result["title"] for result in found.values() if result is not None)
    return Block(f"headlines {benchmark}", f"{title}: its authors' numbers", tuple(columns), rows, notes)


def _cell(headline: dict, result: dict) -> Cell:
    return value_cell(headline) if whole_headline(result, headline["label"]) else Cell(text=PARTIAL)
