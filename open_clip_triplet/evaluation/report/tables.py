"""A table as data: cells, rows, blocks. ``render`` and ``page`` turn it into text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import groupby


@dataclass(frozen=True)
class Cell:
    """A value in 0..100 with its interval, or text alone.

    ``note`` numbers a footnote, 0 for none. ``rank``: 1 best and 2 second best of its column and section.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    text: str = ""
    note: int = 0
    sign: bool = False
    rank: int = 0

    def __str__(self) -> str:
        if self.text or self.value is None:
            return self.text
        return f"{self.value:+.2f}" if self.sign else f"{self.value:.2f}"


@dataclass(frozen=True)
class Row:
    """``kind``: measured, gain, paper, paper-gain or reference. ``group``: a section's name, or empty."""

    kind: str
    group: str
    label: str
    cells: tuple[Cell, ...]


@dataclass
class Block:
    """One table. ``columns``: (upper heading, heading)."""

    name: str
    title: str
    columns: tuple[tuple[str, str], ...]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)


def bodies(block: Block) -> list[tuple[str, list[Row]]]:
    """The rows that stand together, each with its heading: the paper's group, or the group, or empty."""
    here = "measured here" if any(row.kind in ("paper", "reference") for row in block.rows) else ""

    def heading(row: Row) -> str:
        return f"paper, {row.group}" if row.kind.startswith("paper") else row.group or here

    return [(name, list(rows)) for name, rows in groupby(block.rows, key=heading)]


def gain_row(kind: str, group: str, row: Row, base: Row) -> Row:
    """The differences of two rows, in points."""
    cells = tuple(
        Cell(a.value - b.value, sign=True) if a.value is not None and b.value is not None else Cell()
        for a, b in zip(row.cells, base.cells)
    )
    return Row(kind, group, f"{row.label} − {base.label}", cells)


def mark_best(rows: Iterable[Row]) -> list[Row]:
    """The rows with the best and second best value of each column marked, within each section.

    A section of one row has no best, one of two no second best. Values equal as printed share the mark.
    """
    rows = list(rows)
    sections: dict[tuple[str, str], list[int]] = {}
    for i, row in enumerate(rows):
        if not row.kind.endswith("gain"):
            sections.setdefault((row.kind, row.group), []).append(i)
    for members in sections.values():
        for column in range(len(rows[members[0]].cells)):
            _mark_column(rows, members, column)
    return rows


def _mark_column(rows: list[Row], members: list[int], column: int) -> None:
    printed = {i: round(value, 2) for i in members if (value := rows[i].cells[column].value) is not None}
    best = sorted(set(printed.values()), reverse=True)
    for i, value in printed.items():
        rank = best.index(value) + 1
        if len(printed) > rank and rank <= 2 and len(best) > rank:
            cells = list(rows[i].cells)
            cells[column] = replace(cells[column], rank=rank)
            rows[i] = replace(rows[i], cells=tuple(cells))
