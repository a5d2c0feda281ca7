"""The report as one HTML page: tables and plots, self-contained, nothing fetched, every text escaped."""

from __future__ import annotations

import base64
import hashlib
import re
from itertools import groupby

from open_clip_triplet.errors import UsageError
from open_clip_triplet.evaluation.report import plots
from open_clip_triplet.evaluation.report.contents import Report, sections
from open_clip_triplet.evaluation.report.figures import figures, shown_names
from open_clip_triplet.evaluation.report.intervals import provenance
from open_clip_triplet.evaluation.report.package_data import read
from open_clip_triplet.evaluation.report.sources import Results
from open_clip_triplet.evaluation.report.tables import Block, bodies
from open_clip_triplet.evaluation.results import partial_subsets


def page(report: Report, title: str, intro: str) -> str:
    """The whole report; names in it may hold texts from anywhere. Only its own script may run in it.

    Raises:
        UsageError: jinja2 or matplotlib is not installed.
    """
    try:
        import jinja2
        import matplotlib  # noqa: F401  the plots need it; told here, not in the middle
    except ImportError as error:
        raise UsageError(
            f"the HTML report needs {error.name}; install open_clip_triplet with its extra `eval`"
        ) from error

    script = read("page.js")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["slug"] = slug
    results = report.results
    names = shown_names(results)
    return environment.from_string(read("page.html.j2")).render(
        title=title,
        intro=intro,
        baseline=results.baseline,
        partial=_partial(results),
        style=read("page.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        sections=[
            (part, [(block, _upper(block), bodies(block)) for block in part.blocks]) for part in sections(report)
        ],
        figures=figures(report),
        series=names,
        series_count=plots.SERIES,
        not_drawn=[name for name in results.names if name not in names],
        runs=provenance(results),
    )


def slug(text: str) -> str:
    """A link's name.

    >>> slug("Table 4 and 7")
    'table-4-and-7'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _partial(results: Results) -> list[str]:
    """What is partial: benchmarks, and of complete ones the subsets beyond those expected."""
    found = []
    for result in (r for name in results.names for r in results.by_name[name].values()):
        if result["complete"]:
            found += [(f"{result['title']}, {name}", result["subsets"][name]) for name in partial_subsets(result)]
        else:
            found.append((result["title"], result))
    return sorted({f"{name} ({x['items']} of {x['expected'] or '?'} items)" for name, x in found})


def _upper(block: Block) -> list[tuple[str, int]]:
    """The upper headings, and over how many columns each stands."""
    return [(name, len(list(group))) for name, group in groupby(upper for upper, _ in block.columns)]
