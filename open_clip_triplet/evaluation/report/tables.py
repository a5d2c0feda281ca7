"""Results as tables: the paper's, with our checkpoints, gains and the paper's rows; and all intervals.

A table here is data (``Block``); ``report`` and ``html`` turn it into text.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from open_clip_triplet.evaluation.benchmarks import get, names
from open_clip_triplet.evaluation.report.paper import TABLES, PaperTable


@dataclass(frozen=True)
class Cell:
    """A value in 0..100 with its interval, or text alone. ``note`` numbers a footnote, 0 for none."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    text: str = ""
    note: int = 0
    sign: bool = False

    def __str__(self) -> str:
        if self.text or self.value is None:
            return self.text
        return f"{self.value:+.2f}" if self.sign else f"{self.value:.2f}"


@dataclass(frozen=True)
class Row:
    """``kind``: measured, gain, paper or paper-gain. ``group``: the paper's training set, or empty."""

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


class Results:
    """Results by checkpoint name and benchmark.

    Raises:
        ValueError: no such baseline, or one name stands for different weights.
    """

    def __init__(self, results: Iterable[dict], baseline: str | None = None):
        found: dict[str, dict[str, dict]] = {}
        weights: dict[str, str] = {}
        for result in results:
            checkpoint = result["checkpoint"]
            known = weights.setdefault(checkpoint["name"], checkpoint.get("weights", ""))
            if known != checkpoint.get("weights", ""):
                raise ValueError(
                    f"two different checkpoints are called {checkpoint['name']!r}; "
                    "run one again under another name (--pretrained NAME=PATH)"
                )
            found.setdefault(checkpoint["name"], {})[result["benchmark"]] = result
        order = {name: i for i, name in enumerate(names())}
        self.by_name = {
            name: dict(sorted(by_benchmark.items(), key=lambda item: order.get(item[0], len(order))))
            for name, by_benchmark in found.items()
        }
        self.names = list(self.by_name)
        if baseline is not None and baseline not in self.by_name:
            raise ValueError(f"no results of the baseline {baseline!r}; there are: {', '.join(self.names)}")
        self.baseline = baseline or self.names[0]

    def cell(self, name: str, sources: tuple[str, ...]) -> Cell:
        """The mean of some metrics in percent; ``partial`` or empty where one is partial or absent."""
        found = [self._metric(name, source) for source in sources]
        if any(metric is None for metric in found):
            return Cell()
        if any(metric == "partial" for metric in found):
            return Cell(text="partial")
        if len(found) == 1:
            return Cell(*(100 * found[0][part] for part in ("value", "low", "high")))
        return Cell(100 * float(np.mean([metric["value"] for metric in found])))

    def _metric(self, name: str, source: str) -> dict | str | None:
        benchmark, *place = source.split(":")
        result = self.by_name[name].get(benchmark)
        if result is None:
            return None
        if len(place) == 1:
            metric = result["summary"].get(place[0])
            return metric if metric is None or result["complete"] else "partial"
        subset = result["subsets"].get(place[0])
        metric = subset["metrics"].get(place[1]) if subset else None
        if metric is None or metric["value"] is None:
            return None
        return metric if subset["complete"] else "partial"


def paper_blocks(results: Results) -> list[Block]:
    """The paper's tables that at least one checkpoint has a value or a partial run for."""
    blocks = [_paper_block(table, results) for table in TABLES]
    return [
        block
        for block in blocks
        if any(str(cell) for row in block.rows if row.kind == "measured" for cell in row.cells)
    ]


def _paper_block(table: PaperTable, results: Results) -> Block:
    measured = [
        Row("measured", "", name, tuple(results.cell(name, c.sources) for c in table.columns))
        for name in results.names
    ]
    base = next(row for row in measured if row.label == results.baseline)
    gains = [_gain("gain", "", row, base) for row in measured if row is not base]
    notes = list(table.notes)
    if any(cell.text == "partial" for row in measured for cell in row.cells):
        notes.append("partial: not all items were there; see the partial runs below.")
    columns = tuple((column.group, column.name) for column in table.columns)
    block = Block(table.number, f"Table {table.number}. {table.title}", columns, measured, notes)
    block.rows += [row for row in gains if any(str(cell) for cell in row.cells)]
    block.rows += _paper_rows(table, notes)
    return block


def _paper_rows(table: PaperTable, notes: list[str]) -> list[Row]:
    numbered = {}
    for correction in table.corrections:
        why = f"{correction.group}: {correction.why}."
        if why not in notes:
            notes.append(why)
        for column in correction.values:
            numbered[correction.group, correction.method, column] = notes.index(why) + 1
    rows: list[Row] = []
    for (group, method), values in table.rows().items():
        cells = tuple(Cell(value, note=numbered.get((group, method, i), 0)) for i, value in enumerate(values))
        rows.append(Row("paper", group, method, cells))
    out: list[Row] = []
    for i, row in enumerate(rows):
        out.append(row)
        last = i + 1 == len(rows) or rows[i + 1].group != row.group
        if last and row.group in table.baselines:
            base = next(r for r in rows if r.group == row.group and r.label == table.baselines[row.group])
            best = next(r for r in rows if r.group == row.group and r.label == "TripletCLIP")
            out.append(_gain("paper-gain", row.group, best, base))
    return out


def _gain(kind: str, group: str, row: Row, base: Row) -> Row:
    cells = tuple(
        Cell(a.value - b.value, sign=True) if a.value is not None and b.value is not None else Cell()
        for a, b in zip(row.cells, base.cells)
    )
    return Row(kind, group, f"{row.label} − {base.label}", cells)


def interval_blocks(results: Results) -> list[Block]:
    """Every complete metric with its interval, a table per benchmark; then the partial ones, apart."""
    benchmarks = dict.fromkeys(b for name in results.names for b in results.by_name[name])
    blocks = []
    for complete in (True, False):
        for benchmark in benchmarks:
            block = _interval_block(results, benchmark, complete)
            if block.rows:
                blocks.append(block)
    return blocks


def _interval_block(results: Results, benchmark: str, complete: bool) -> Block:
    rows = []
    for name in results.names:
        result = results.by_name[name].get(benchmark)
        if result is None:
            continue
        for subset, content in result["subsets"].items():
            if content["items"] and content["complete"] == complete:
                rows += _interval_rows(name, subset, content)
        if result["complete"] == complete:
            rows += [
                Row("measured", name, average, (*_value_cells(metric), Cell(text=_share(result)), Cell()))
                for average, metric in result["summary"].items()
            ]
    title = get(benchmark).title
    heading = (
        f"{title}: 95% intervals" if complete else f"{title}: PARTIAL RUN, not comparable with the paper"
    )
    columns = (("", "value"), ("95%", "low"), ("95%", "high"), ("", "items"), ("", "ties"))
    return Block(f"{benchmark}{'' if complete else '-partial'}", heading, columns, rows)


def _interval_rows(name: str, subset: str, content: dict) -> list[Row]:
    counts = (Cell(text=_share(content)), Cell(text=str(content["ties"])))
    return [
        Row("measured", name, f"{subset} {metric}", (*_value_cells(numbers), *counts))
        for metric, numbers in content["metrics"].items()
        if numbers["value"] is not None
    ]


def _value_cells(numbers: dict) -> tuple[Cell, ...]:
    return tuple(
        Cell(None if numbers[part] is None else 100 * numbers[part]) for part in ("value", "low", "high")
    )


def _share(content: dict) -> str:
    expected = content["expected"]
    return f"{content['items']}" if content["complete"] else f"{content['items']} of {expected or '?'}"


def provenance(results: Results) -> list[str]:
    """A line per checkpoint and run: weights, precision, versions, ties, odd images."""
    lines = []
    for name in results.names:
        for result in results.by_name[name].values():
            checkpoint = result["checkpoint"]
            weights = str(checkpoint.get("weights", "unknown"))
            odd = ", ".join(f"{n} {kind}" for kind, n in result["images"].items() if kind != "unique")
            versions = ", ".join(f"{package} {version}" for package, version in result["versions"].items())
            lines.append(
                f"{name}, {result['title']}: {result['items']} of {result['expected'] or '?'} items, "
                f"{result['images']['unique']} images{f' ({odd})' if odd else ''}, {result['ties']} ties; "
                f"weights {weights if weights.startswith('tag:') else weights[:12]}, "
                f"{checkpoint.get('precision', '')}; {result['date']}; {versions}"
            )
    return lines
