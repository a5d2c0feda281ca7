"""Findings as tables, for a terminal, Markdown, csv and json, with plots by matplotlib."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from open_clip_triplet.errors import UsageError
from open_clip_triplet.files import join, write_text_durably, write_whole

FORMATS = ("table", "md", "csv", "json")
#: series colours that stay apart for the colour-blind (Okabe and Ito)
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


@dataclass
class Table:
    """``rows``: a label and one value per column (numbers, texts, None for nothing)."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""


@dataclass
class Report:
    """What a command found. ``plots`` maps a name to a function that draws on a matplotlib Axes."""

    name: str
    title: str
    tables: list[Table] = field(default_factory=list)
    plots: dict[str, Callable] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    intro: str = ""

    def text(self, format: str = "table") -> str:
        """The report in one of ``FORMATS``."""
        return {"table": self._table, "md": self._markdown, "csv": self._csv, "json": self._json}[format]()

    def write(self, folder: str) -> list[str]:
        """Write ``NAME.md``, ``NAME.csv``, ``NAME.json`` and a PNG per plot; returns their paths.

        Raises:
            UsageError: matplotlib is not installed.
        """
        written = []
        for suffix in FORMATS[1:]:
            written.append(join(folder, f"{self.name}.{suffix}"))
            write_text_durably(written[-1], self.text(suffix))
        for plot, draw in self.plots.items():
            written.append(join(folder, self._picture(plot)))
            with write_whole(written[-1]) as file:
                file.write(draw_png(draw))
        return written

    def _picture(self, plot: str) -> str:
        return f"{self.name}-{plot.replace(' ', '-')}.png"

    def _table(self) -> str:
        parts = [self.title, *([self.intro] if self.intro else [])]
        for table in self.tables:
            lines = [[table.title, *table.columns], *([str(row[0]), *map(_shown, row[1:])] for row in table.rows)]
            widths = [max(map(len, column)) for column in zip(*lines)]
            parts.append("\n".join(
                "  ".join(cell.ljust(w) if n == 0 else cell.rjust(w) for n, (cell, w) in enumerate(zip(line, widths)))
                for line in lines
            ) + (f"\n  {table.note}" if table.note else ""))
        return "\n\n".join(parts) + "\n"

    def _markdown(self) -> str:
        parts = [f"# {_cell(self.title)}", *([self.intro] if self.intro else [])]
        for table in self.tables:
            head = f"| {_cell(table.title)} | " + " | ".join(map(_cell, table.columns)) + " |"
            lines = [head, "|---|" + "---:|" * len(table.columns)]
            lines += ["| " + " | ".join([_cell(str(row[0])), *(_cell(_shown(v)) for v in row[1:])]) + " |"
                      for row in table.rows]
            parts += ["\n".join(lines), *([table.note] if table.note else [])]
        parts += [f"![{plot}]({self._picture(plot)})" for plot in self.plots]
        return "\n\n".join(parts) + "\n"

    def _csv(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["table", "row", "column", "value"])
        for table in self.tables:
            for label, *values in table.rows:
                writer.writerows([table.title, label, column, "" if value is None else value]
                                 for column, value in zip(table.columns, values))
        return text.getvalue()

    def _json(self) -> str:
        tables = {t.title: [dict(zip(["name", *t.columns], row)) for row in t.rows] for t in self.tables}
        return json.dumps({"title": self.title, "tables": tables, **self.values}, indent=1, ensure_ascii=False) + "\n"


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        if 0 < abs(value) < 0.0005:
            return f"{value:.1g}"
        return f"{value:.3f}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _cell(text: str) -> str:
    from open_clip_triplet.tripletdata.run.card import cell

    return cell(text)


def draw_png(draw: Callable) -> bytes:
    """A plot as PNG bytes: ``draw`` gets matplotlib Axes."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("plots need matplotlib: install open_clip_triplet with its extra `inspect`") from error
    figure = Figure(figsize=(6.4, 3.6), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(color=COLOURS)
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def add_report_arguments(parser) -> None:
    """``--output`` and ``--format``."""
    parser.add_argument("--output", metavar="DIR", help="write md, csv, json and plots into this folder")
    parser.add_argument("--format", choices=FORMATS, default="table", help="of standard output (default table)")


def conclude(report: Report, args) -> int:
    """Print the report and, with ``--output``, write it."""
    import sys

    print(report.text(args.format), end="")
    if args.output:
        written = report.write(args.output)
        print(f"wrote {', '.join(written)}", file=sys.stderr)
    return 0
