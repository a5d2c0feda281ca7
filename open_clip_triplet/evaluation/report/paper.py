"""The paper's tables (``paper.toml``): printed values, corrections, and what each column measures.

Reference: Patel et al., NeurIPS 2024, arXiv:2411.02545.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache

from open_clip_triplet.evaluation.report.package_data import load_toml
from open_clip_triplet.evaluation.report.sources import PARTIAL, Results
from open_clip_triplet.evaluation.report.tables import Block, Cell, Row, gain_row, mark_best

#: (group, method) of a row
RowKey = tuple[str, str]
Values = list[float | None]


@dataclass(frozen=True)
class Column:
    """One column: its two-line heading and the metrics whose mean it shows."""

    group: str
    name: str
    sources: tuple[str, ...]

    @property
    def heading(self) -> str:
        return f"{self.group} {self.name}".strip()


@dataclass(frozen=True)
class Remark:
    """Why some values of a row are wrong. ``values``: column heading -> right value, None where unknown."""

    row: RowKey
    values: dict[str, float | None]
    why: str


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper, or several with the same columns. Values in percent, None where not printed."""

    number: str
    title: str
    columns: tuple[Column, ...]
    printed: dict[RowKey, Values]
    remarks: tuple[Remark, ...] = ()
    notes: tuple[str, ...] = ()
    baselines: dict[str, str] = field(default_factory=dict)

    def rows(self) -> dict[RowKey, Values]:
        """The rows with the paper's errors corrected."""
        rows = {key: list(values) for key, values in self.printed.items()}
        for remark in self.remarks:
            for heading, value in remark.values.items():
                if value is not None:
                    rows[remark.row][self._index(heading)] = value
        return rows

    def _index(self, heading: str) -> int:
        return next(i for i, column in enumerate(self.columns) if column.heading == heading)

    def remarked(self) -> dict[tuple[str, str, int], str]:
        """(group, method, column index) -> what is wrong there."""
        return {
            (*remark.row, self._index(heading)): f"{remark.row[0]}: {remark.why}."
            for remark in self.remarks
            for heading in remark.values
        }


@lru_cache(maxsize=1)
def tables() -> tuple[PaperTable, ...]:
    """Every table of the paper that a checkpoint can have a row in, in the order of the report."""
    return tuple(_table(entry) for entry in load_toml("paper.toml")["table"])


def table(number: str) -> PaperTable:
    """The table that has this number, alone or among others.

    >>> table("7").number
    '4 and 7'
    """
    return next(t for t in tables() if number in t.number.replace(",", " ").split())


def _table(entry: dict) -> PaperTable:
    columns = tuple(Column(group, name, tuple(sources)) for group, name, sources in entry["columns"])
    printed = {
        (group, method): [None if math.isnan(value) else float(value) for value in values]
        for group, method, *values in entry["rows"]
    }
    remarks = [Remark(tuple(r["row"]), r["values"], r["why"]) for r in entry.get("corrections", [])]
    remarks += [
        Remark(tuple(r["row"]), dict.fromkeys(r["columns"]), r["why"]) for r in entry.get("errata", [])
    ]
    return PaperTable(
        entry["number"],
        entry["title"],
        columns,
        printed,
        tuple(remarks),
        tuple(entry.get("notes", [])),
        entry.get("baselines", {}),
    )


def paper_blocks(results: Results) -> list[Block]:
    """The paper's tables that at least one checkpoint has a value or a partial run for."""
    blocks = [_paper_block(entry, results) for entry in tables()]
    return [block for block in blocks if any(row.kind == "measured" for row in block.rows)]


def _paper_block(entry: PaperTable, results: Results) -> Block:
    rows = results.rows([column.sources for column in entry.columns], gains=True)
    notes = [*entry.notes, *results.item_notes(s for c in entry.columns for s in c.sources)]
    if any(cell.text == PARTIAL for row in rows for cell in row.cells):
        notes.append("partial: not all items were there; see the partial runs below.")
    columns = tuple((column.group, column.name) for column in entry.columns)
    plural = "s" if " " in entry.number else ""
    rows += _paper_rows(entry, notes)
    return Block(
        entry.number, f"Table{plural} {entry.number}. {entry.title}", columns, mark_best(rows), notes
    )


def _paper_rows(entry: PaperTable, notes: list[str]) -> list[Row]:
    remarked = entry.remarked()
    notes += [why for why in dict.fromkeys(remarked.values()) if why not in notes]
    numbered = {place: notes.index(why) + 1 for place, why in remarked.items()}
    rows = [
        Row(
            "paper",
            group,
            method,
            tuple(Cell(value, note=numbered.get((group, method, i), 0)) for i, value in enumerate(values)),
        )
        for (group, method), values in entry.rows().items()
    ]
    out: list[Row] = []
    for i, row in enumerate(rows):
        out.append(row)
        last = i + 1 == len(rows) or rows[i + 1].group != row.group
        if last and row.group in entry.baselines:
            base = next(r for r in rows if r.group == row.group and r.label == entry.baselines[row.group])
            best = next(r for r in rows if r.group == row.group and r.label == "TripletCLIP")
            out.append(gain_row("paper-gain", row.group, best, base))
    return out
