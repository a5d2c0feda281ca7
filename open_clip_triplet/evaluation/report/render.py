"""Reports as Markdown, CSV, LaTeX or one self-contained HTML page."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable

from open_clip_triplet.errors import UsageError
from open_clip_triplet.evaluation.metrics import TIE_RULE
from open_clip_triplet.evaluation.report.contents import Report, sections
from open_clip_triplet.evaluation.report.coverage import Run
from open_clip_triplet.evaluation.report.intervals import provenance
from open_clip_triplet.evaluation.report.sources import Results
from open_clip_triplet.evaluation.report.tables import Block, Cell, Row, bodies

TITLE = "Evaluation beside the TripletCLIP paper"
INTRO = (
    "Values in percent. The paper's rows are from arXiv:2411.02545, corrected where the paper is wrong "
    f"(footnotes). Ties: {TIE_RULE}."
)


def render(
    results: Iterable[dict],
    form: str,
    *,
    baseline: str | None = None,
    reference: str | None = None,
    coverage: Iterable[Run] = (),
) -> str:
    """A report of results (``results.read_results``).

    Args:
        form: ``md``, ``csv``, ``latex`` or ``html``.
        baseline: the checkpoint that gains and tests are against; the first where None.
        reference: known models to show beside ours (``reference.known_models``); None for none.
        coverage: the runs of Figure 3 (``coverage.read_coverage``).

    Raises:
        ValueError: no such baseline, form or known model.
    """
    report = Report(Results(results, baseline), reference, tuple(coverage))
    if form == "html":
        from open_clip_triplet.evaluation.report.page import page

        return page(report, TITLE, INTRO)
    writers = {"md": markdown, "csv": comma_separated, "latex": latex}
    if form not in writers:
        raise UsageError(f"unknown format {form!r}; known: md, csv, latex, html")
    return writers[form](report)


def all_blocks(report: Report) -> list[Block]:
    """Every table of a report, in order."""
    return [block for part in sections(report) for block in part.blocks]


def heading(column: tuple[str, str]) -> str:
    """The two lines of a column's heading as one."""
    return " ".join(part for part in column if part)


def row_label(row: Row) -> str:
    """What a row is called where there is one label column."""
    if row.kind.startswith("paper"):
        return f"{row.label} ({row.group})"
    return f"{row.group}: {row.label}" if row.group else row.label


def markdown(report: Report) -> str:
    """All tables as GitHub Markdown."""
    parts = [f"# {TITLE}", INTRO]
    for block in all_blocks(report):
        parts += [f"## {_md(block.title)}", _markdown_table(block)]
        parts += [f"{i}. {_md(note)}" for i, note in enumerate(block.notes, 1)]
    parts += ["## Runs", "\n".join(f"- {_md(line)}" for line in provenance(report.results))]
    text = "\n\n".join(parts)
    return re.sub(r"(?m)^(\d+\. .*)\n\n(?=\d+\. )", r"\1\n", text) + "\n"


def _md(text: str) -> str:
    return re.sub(r"([|<>*_`\\])", r"\\\1", text)


def _markdown_table(block: Block) -> str:
    lines = [
        "| " + " | ".join(["", *(_md(heading(c)) for c in block.columns)]) + " |",
        "|---" + "|---:" * len(block.columns) + "|",
    ]
    for name, rows in bodies(block):
        if name:
            lines.append(f"| *{_md(name)}* |" + " |" * len(block.columns))
        lines += ["| " + " | ".join([_md(row.label), *map(_markdown_cell, row.cells)]) + " |" for row in rows]
    return "\n".join(lines)


def _markdown_cell(cell: Cell) -> str:
    """Best in bold, second best underlined, as the paper prints them."""
    before, after = {1: ("**", "**"), 2: ("<u>", "</u>")}.get(cell.rank, ("", ""))
    note = f"<sup>{cell.note}</sup>" if cell.note else ""
    return f"{before}{_md(str(cell))}{after}{note}"


def comma_separated(report: Report) -> str:
    """One line per value: table, kind, group, row, column, value, low, high, text, note."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["table", "kind", "group", "row", "column", "value", "low", "high", "text", "note"])
    for block in all_blocks(report):
        for row in block.rows:
            for column, cell in zip(block.columns, row.cells):
                if cell.value is None and not cell.text:
                    continue
                numbers = ["" if x is None else f"{x:.6g}" for x in (cell.value, cell.low, cell.high)]
                note = block.notes[cell.note - 1] if cell.note else ""
                writer.writerow(
                    [_plain(x) for x in (block.name, row.kind, row.group, row.label, heading(column))]
                    + numbers
                    + [_plain(cell.text), note]
                )
    return stream.getvalue()


def _plain(text: str) -> str:
    """A checkpoint's name may start like a formula; a spreadsheet must not run it. Numbers stay numbers."""
    if not text.startswith(("=", "+", "-", "@", "\t", "\r")):
        return text
    return text if re.fullmatch(r"[+-]?[0-9.]+(e[+-]?[0-9]+)?", text) else f"'{text}"


_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "<": "$<$",
    ">": "$>$",
}


def _tex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def latex(report: Report) -> str:
    """All tables as LaTeX; needs the booktabs and graphicx packages."""
    parts = [f"% {TITLE}. {INTRO}", "% \\usepackage{booktabs,graphicx}"]
    parts += map(_latex_table, all_blocks(report))
    return "\n\n".join(parts) + "\n"


def _latex_table(block: Block) -> str:
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_tex(block.title)}}}",
        r"\resizebox{\linewidth}{!}{%",
        rf"\begin{{tabular}}{{l{'r' * len(block.columns)}}}",
        r"\toprule",
    ]
    lines.append(" & ".join(["", *(_tex(heading(column)) for column in block.columns)]) + r" \\")
    before = None
    for row in block.rows:
        if (row.kind.partition("-")[0], row.group) != before:
            lines.append(r"\midrule")
        before = (row.kind.partition("-")[0], row.group)
        lines.append(" & ".join([_tex(row_label(row)), *map(_latex_cell, row.cells)]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}}"]
    lines += [rf"\par\footnotesize {i}. {_tex(note)}" for i, note in enumerate(block.notes, 1)]
    return "\n".join([*lines, r"\end{table}"])


def _latex_cell(cell: Cell) -> str:
    command = {1: r"\textbf{%s}", 2: r"\underline{%s}"}.get(cell.rank, "%s")
    return command % _tex(str(cell)) + (f"$^{{{cell.note}}}$" if cell.note else "")
