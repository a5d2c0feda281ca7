"""The report as one HTML page: tables and plots, no script, nothing fetched, every text escaped."""

from __future__ import annotations

from html import escape

from open_clip_triplet.evaluation.benchmarks import get
from open_clip_triplet.evaluation.report.compare import comparison_blocks
from open_clip_triplet.evaluation.report.plots import bars, histograms, legend, radar
from open_clip_triplet.evaluation.report.render import INTRO, TITLE
from open_clip_triplet.evaluation.report.tables import (
    Block,
    Cell,
    Results,
    Row,
    interval_blocks,
    paper_blocks,
    provenance,
)

STYLE = """
:root { color-scheme: light dark; --ink:#1c1f24; --soft:#5d6672; --line:#d9dee5; --back:#fff;
  --band:#f4f6f9;
  --s0:#0b63b5; --s1:#d9770a; --s2:#0f8a5f; --s3:#b0468e; --s4:#3aa0c9; --s5:#b8860b; --s6:#7257c7;
  --s7:#8a4b2d; }
@media (prefers-color-scheme: dark) { :root { --ink:#e6e9ee; --soft:#9aa4b2; --line:#343b46;
  --back:#14171c;
  --band:#1d2229; --s0:#5aa9f2; --s1:#f2a04a; --s2:#43c493; --s3:#e084c2; --s4:#7fd0ef; --s5:#e0b84a;
  --s6:#a894f0;
  --s7:#cf9272; } }
body { font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: var(--ink); background:
  var(--back);
  margin: 0 auto; max-width: 1180px; padding: 24px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 38px 0 8px; }
h3 { font-size: 15px; margin: 14px 0 4px; color: var(--soft); font-weight: 600; }
p, li { max-width: 82ch; } .soft, .notes { color: var(--soft); font-size: 13px; }
nav a { margin-right: 14px; color: var(--s0); white-space: nowrap; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; }
th, td { padding: 3px 9px; text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--back); }
thead th { border-bottom: 1px solid var(--line); vertical-align: bottom; } thead tr:first-child th {
  border: 0;
  color: var(--soft); font-weight: 500; text-align: center; }
tr.measured td { font-weight: 650; background: var(--band); } tr.gain td, tr.paper-gain td {
  font-style: italic; }
table.plain tr.measured td { font-weight: 400; background: none; }
tr.group td { color: var(--soft); padding-top: 9px; border-bottom: 1px solid var(--line); }
td.partial { color: var(--s1); font-weight: 500 !important; } sup { color: var(--s3); }
.warn { border-left: 4px solid var(--s1); background: var(--band); padding: 8px 14px; max-width: 78ch; }
.plots { columns: 2 520px; column-gap: 32px; } figure { margin: 0 0 10px; break-inside: avoid; }
svg { max-width: 100%; height: auto; }
svg text { font: 12px system-ui, "DejaVu Sans", sans-serif; fill: var(--ink); }
svg text.tick, svg text.value { fill: var(--soft); font-size: 11px; }
.grid, .ring { stroke: var(--line); fill: none; } .axis { stroke: var(--soft); }
.chance { stroke: var(--soft); stroke-dasharray: 4 3; } .whisker { stroke: var(--ink); stroke-width:
  1.4; }
.legend { margin: 6px 0; } .key { margin-right: 18px; } .key i { display: inline-block; width: 12px;
  height: 12px;
  border-radius: 2px; margin-right: 6px; vertical-align: -1px; }"""

#: benchmark -> (metric of the bars, accuracy of guessing in percent or None)
BARS = {
    "sugarcrepe": ("accuracy", 50),
    "valse": ("accuracy", 50),
    "aro": ("accuracy", 50),
    "sugarcrepe_pp": ("accuracy", 100 / 3),
    "negbench": ("accuracy", 25),
    "zeroshot": ("top1", None),
}
#: axes of the radar: (name, benchmark, subset or None for the overall average, metric)
RADAR = (
    ("SugarCrepe", "sugarcrepe", None, "overall"),
    ("VALSE", "valse", None, "overall"),
    ("Winoground group", "winoground", "winoground", "group"),
    ("Cola group", "cola", "cola", "group"),
    ("COCO i2t R@5", "retrieval", "mscoco", "i2t_r5"),
    ("COCO t2i R@5", "retrieval", "mscoco", "t2i_r5"),
    ("Flickr30k i2t R@5", "retrieval", "flickr30k", "i2t_r5"),
    ("Flickr30k t2i R@5", "retrieval", "flickr30k", "t2i_r5"),
    ("Flickr8k i2t R@5", "retrieval", "flickr8k", "i2t_r5"),
    ("Flickr8k t2i R@5", "retrieval", "flickr8k", "t2i_r5"),
    ("18 sets top-1", "zeroshot", None, "overall"),
    ("CIFAR-10 top-1", "zeroshot", "cifar10", "top1"),
    ("TripletData group", "tripletdata", "tripletdata", "group"),
)


def page(results: Results) -> str:
    """The whole report; ``results`` may hold texts from anywhere."""
    sections = [
        ("plots", "Plots", _plots(results)),
        ("paper", "The paper's tables", _blocks(paper_blocks(results))),
    ]
    compared = comparison_blocks(results)
    if compared:
        sections.append(("tests", "Paired tests", _blocks(compared, plain=True)))
    sections.append(("all", "All values", _blocks(interval_blocks(results), plain=True)))
    runs = "".join(f"<li>{escape(line)}</li>" for line in provenance(results))
    sections.append(("runs", "Runs", f'<h2 id="runs">Runs</h2><ul class="soft">{runs}</ul>'))
    links = "".join(f'<a href="#{key}">{escape(title)}</a>' for key, title, body in sections if body)
    body = "".join(
        f'<section id="s-{key}"><a id="{key}"></a>{body}</section>' if key != "runs" else body
        for key, _, body in sections
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(TITLE)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>'
        f"<h1>{escape(TITLE)}</h1><p>{escape(INTRO)} Baseline: <b>{escape(results.baseline)}</b>.</p>"
        f"{_warning(results)}<nav>{links}</nav>{body}</body></html>\n"
    )


def _warning(results: Results) -> str:
    partial = {
        f"{result['title']} ({result['items']} of {result['expected'] or '?'} items)"
        for name in results.names
        for result in results.by_name[name].values()
        if not result["complete"]
    }
    if not partial:
        return ""
    return (
        f'<p class="warn"><b>Partial runs:</b> {escape("; ".join(sorted(partial)))}. '
        "Their values are marked, kept out of the paper's tables, and not comparable with the paper.</p>"
    )


def _blocks(blocks: list[Block], plain: bool = False) -> str:
    return "".join(_table(block, plain) for block in blocks)


def _table(block: Block, plain: bool) -> str:
    rows, section = [], ""
    has_paper = any(row.kind == "paper" for row in block.rows)
    for row in block.rows:
        now = (
            f"paper, {row.group}"
            if row.kind.startswith("paper")
            else ("measured here" if has_paper else row.group)
        )
        if now != section and now:
            rows.append(f'<tr class="group"><td colspan="{len(block.columns) + 1}">{escape(now)}</td></tr>')
        section = now
        rows.append(_row(row))
    upper = "".join(f'<th colspan="{span}">{escape(name)}</th>' for name, span in _spans(block.columns))
    lower = "".join(f"<th>{escape(name)}</th>" for _, name in block.columns)
    notes = "".join(f"<li>{escape(note)}</li>" for note in block.notes)
    return (
        f'<h2>{escape(block.title)}</h2><div class="scroll"><table class="{"plain" if plain else ""}"><thead>'
        f"<tr><th></th>{upper}</tr><tr><th></th>{lower}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        + (f'<ol class="notes">{notes}</ol>' if notes else "")
    )


def _spans(columns: tuple) -> list[tuple[str, int]]:
    spans: list[tuple[str, int]] = []
    for group, _ in columns:
        if spans and spans[-1][0] == group:
            spans[-1] = (group, spans[-1][1] + 1)
        else:
            spans.append((group, 1))
    return spans


def _row(row: Row) -> str:
    return f'<tr class="{row.kind}"><td>{escape(row.label)}</td>{"".join(map(_cell, row.cells))}</tr>'


def _cell(cell: Cell) -> str:
    title = f' title="95%: {cell.low:.2f} to {cell.high:.2f}"' if cell.low is not None else ""
    kind = ' class="partial"' if cell.text == "partial" else ""
    note = f"<sup>{cell.note}</sup>" if cell.note else ""
    return f"<td{kind}{title}>{escape(str(cell))}{note}</td>"


def _plots(results: Results) -> str:
    parts = ["<h2>Plots</h2>", legend(results.names), '<div class="plots">', _radar(results)]
    for benchmark in dict.fromkeys(b for name in results.names for b in results.by_name[name]):
        found = [results.by_name[name].get(benchmark) for name in results.names]
        parts.append(_bars(benchmark, found, results.names))
        parts.append(_histograms(benchmark, found, results.names))
    return "".join(parts) + "</div>"


def _figure(title: str, svg: str) -> str:
    return f"<figure><h3>{escape(title)}</h3>{svg}</figure>"


def _mark(found: list[dict | None]) -> str:
    return " — PARTIAL" if any(result and not result["complete"] for result in found) else ""


def _bars(benchmark: str, found: list[dict | None], names: list[str]) -> str:
    results = [result for result in found if result]
    subsets = [
        s
        for s in dict.fromkeys(s for r in results for s in r["subsets"])
        if any(r["subsets"].get(s, {}).get("items") for r in results)
    ]
    if benchmark in BARS:
        metric, chance = BARS[benchmark]
        places = [(subset.replace("_", " "), subset, metric) for subset in subsets]
    else:
        chance = None
        metrics = dict.fromkeys(m for r in results for s in r["subsets"].values() for m in s["metrics"])
        words = {m: m.replace("_r", " R@") for m in metrics}
        places = [
            (f"{s} {words[m]}" if len(subsets) > 1 else words[m], s, m) for s in subsets for m in metrics
        ]
    values = [[_triple(result, subset, metric) for _, subset, metric in places] for result in found]
    title = f"{get(benchmark).title}{_mark(found)}"
    return _figure(title, bars([label for label, _, _ in places], values, names, title, chance))


def _triple(result: dict | None, subset: str, metric: str) -> tuple | None:
    numbers = ((result or {"subsets": {}})["subsets"].get(subset) or {"metrics": {}})["metrics"].get(metric)
    if not numbers or numbers["value"] is None:
        return None
    low, high = (numbers["value"] if numbers[x] is None else numbers[x] for x in ("low", "high"))
    return tuple(100 * x for x in (numbers["value"], low, high))


def _radar(results: Results) -> str:
    def value(name: str, benchmark: str, subset: str | None, metric: str) -> float | None:
        result = results.by_name[name].get(benchmark)
        if result is None:
            return None
        metrics = (
            result["summary"] if subset is None else result["subsets"].get(subset, {}).get("metrics", {})
        )
        numbers = metrics.get(metric)
        return 100 * numbers["value"] if numbers and numbers["value"] is not None else None

    axes = [axis for axis in RADAR if any(value(name, *axis[1:]) is not None for name in results.names)]
    if len(axes) < 3:
        return ""
    partial = {
        axis
        for axis in axes
        if any(not r["complete"] for n in results.names if (r := results.by_name[n].get(axis[1])))
    }
    labels = [axis[0] + ("*" if axis in partial else "") for axis in axes]
    series = [[value(name, *axis[1:]) for axis in axes] for name in results.names]
    title = "The suite" + (" (* partial run)" if partial else "")
    return _figure(title, radar(labels, series, results.names, title))


def _histograms(benchmark: str, found: list[dict | None], names: list[str]) -> str:
    kept = []
    for name, result in zip(names, found):
        subsets = (result or {"subsets": {}})["subsets"].values()
        kept.append((name, next((s["histograms"] for s in subsets if s.get("histograms")), None)))
    if all(histogram is None for _, histogram in kept):
        return ""
    edges = next(histogram["edges"] for _, histogram in kept if histogram)
    parts = []
    for modality, what in (("image", "images"), ("text", "captions")):
        counts = [histogram[modality] if histogram else [0] * (len(edges) - 1) for _, histogram in kept]
        title = f"{get(benchmark).title}: positive and negative {what}{_mark(found)}"
        parts.append(_figure(title, histograms(edges, counts, names, title)))
    return "".join(parts)
