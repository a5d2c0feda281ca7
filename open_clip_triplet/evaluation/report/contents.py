"""What a report shows, in order, whatever its format."""

from __future__ import annotations

from dataclasses import dataclass

from open_clip_triplet.evaluation.report.compare import comparison_blocks
from open_clip_triplet.evaluation.report.coverage import Run, coverage_block
from open_clip_triplet.evaluation.report.headlines import headline_blocks
from open_clip_triplet.evaluation.report.intervals import interval_blocks
from open_clip_triplet.evaluation.report.paper import paper_blocks
from open_clip_triplet.evaluation.report.reference import composition_block
from open_clip_triplet.evaluation.report.retention import leaderboard_block, retention_block
from open_clip_triplet.evaluation.report.sources import Results
from open_clip_triplet.evaluation.report.tables import Block


@dataclass(frozen=True)
class Report:
    """Results, and what to show beside them.

    ``reference``: which known models (``reference.known_models``), None for none. ``coverage``: the runs of
    Figure 3.
    """

    results: Results
    reference: str | None = None
    coverage: tuple[Run, ...] = ()


@dataclass(frozen=True)
class Section:
    """Tables under one heading. ``key`` is its link. ``plain`` tables hold measured rows only."""

    key: str
    title: str
    blocks: tuple[Block, ...]
    plain: bool = False


def sections(report: Report) -> list[Section]:
    """The sections that have a table."""
    results = report.results
    summary = [
        retention_block(results),
        composition_block(results, report.reference),
        leaderboard_block(results),
    ]
    if report.coverage:
        summary.append(coverage_block(results, report.coverage))
    authors = headline_blocks(results, report.reference is not None)
    found = [
        Section("summary", "Summary", tuple(block for block in summary if block is not None)),
        Section("paper", "The paper's tables", tuple(paper_blocks(results))),
        Section("headlines", "The authors' numbers", tuple(authors), plain=True),
        Section("tests", "Paired tests", tuple(comparison_blocks(results)), plain=True),
        Section("all", "All values", tuple(interval_blocks(results)), plain=True),
    ]
    return [section for section in found if section.blocks]
