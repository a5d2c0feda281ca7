"""Figure 3: scores against concept coverage, from several runs.

Which checkpoint was trained by which method on how many concepts (unique WordNet synsets of its captions,
as ``triplet-shards concepts`` counts them) comes from a CSV file.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass

from open_clip_triplet.errors import DataError
from open_clip_triplet.evaluation.report.paper import table
from open_clip_triplet.evaluation.report.sources import Results
from open_clip_triplet.evaluation.report.tables import Block, Cell, Row

FIELDS = ("checkpoint", "method", "concepts")


@dataclass(frozen=True)
class Run:
    """A trained checkpoint and the number of unique concepts in its training captions."""

    checkpoint: str
    method: str
    concepts: float


def read_coverage(path: str | os.PathLike) -> list[Run]:
    """Runs from a CSV file with the columns ``checkpoint``, ``method``, ``concepts``.

    Raises:
        DataError: the file, or the line, that cannot be used.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            if missing := [name for name in FIELDS if name not in (reader.fieldnames or ())]:
                raise DataError(f"{path}: lacks the column(s) {', '.join(missing)}; needs {','.join(FIELDS)}")
            return [_run(path, reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV ({error})") from error


def _run(path: str | os.PathLike, line: int, row: dict) -> Run:
    try:
        concepts = float(row["concepts"])
    except (TypeError, ValueError):
        concepts = 0.0
    if not (row["checkpoint"] and row["method"] and 0 < concepts < float("inf")):
        raise DataError(f"{path} line {line}: needs a checkpoint, a method and a positive number of concepts")
    return Run(row["checkpoint"], row["method"], concepts)


def coverage_block(results: Results, runs: Sequence[Run]) -> Block:
    """The scores of Figure 3's three panels by method and number of concepts.

    Raises:
        DataError: a checkpoint has no results; it is named.
    """
    if unknown := [run.checkpoint for run in runs if run.checkpoint not in results.by_name]:
        raise DataError(f"no results of {', '.join(unknown)}; there are: {', '.join(results.names)}")
    columns = table("3").columns
    rows = [
        Row(
            "measured",
            run.method,
            run.checkpoint,
            (Cell(text=f"{run.concepts:,.0f}"), *(results.cell(run.checkpoint, c.sources) for c in columns)),
        )
        for run in sorted(runs, key=lambda run: (run.method, run.concepts))
    ]
    headings = (("", "concepts"), *((c.group, c.name) for c in columns))
    notes = results.item_notes(source for column in columns for source in column.sources)
    return Block("Figure 3", "Figure 3. Scores by concept coverage", headings, rows, notes)


def coverage_series(results: Results, runs: Sequence[Run]) -> list[tuple[str, dict[str, list]]]:
    """Panels of Figure 3: (title, method -> [(concepts, value in percent), ...] by rising concepts)."""
    panels = []
    for column in table("3").columns:
        lines: dict[str, list] = {}
        for run in sorted(runs, key=lambda run: run.concepts):
            value = results.cell(run.checkpoint, column.sources).value
            if value is not None:
                lines.setdefault(run.method, []).append((run.concepts, value))
        if lines:
            panels.append((column.heading, lines))
    return panels
