"""Every metric of every checkpoint with its interval; and the runs that they come from."""

from __future__ import annotations

from open_clip_triplet.evaluation.benchmarks import get
from open_clip_triplet.evaluation.metrics import FEWEST_ITEMS
from open_clip_triplet.evaluation.report.sources import Results
from open_clip_triplet.evaluation.report.tables import Block, Cell, Row

COLUMNS = (("", "value"), ("95%", "low"), ("95%", "high"), ("", "items"), ("", "ties"))


def interval_blocks(results: Results) -> list[Block]:
    """Every complete metric with its interval, a table per benchmark; then the partial ones, apart."""
    blocks = [
        _interval_block(results, benchmark, complete)
        for complete in (True, False)
        for benchmark in results.benchmarks()
    ]
    return [block for block in blocks if block.rows]


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
    name = f"{benchmark}{'' if complete else '-partial'}"
    notes = results.item_notes([benchmark], complete)
    if any(row.cells[1].value is None for row in rows):
        notes.append(f"No interval for a mean in which a subset or class has fewer than {FEWEST_ITEMS} items.")
    return Block(name, heading, COLUMNS, rows, notes)


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
            forced = checkpoint.get("force_image_size")
            pixels = f", images of {forced} pixels" if forced else ""
            versions = ", ".join(f"{package} {version}" for package, version in result["versions"].items())
            lines.append(
                f"{name}, {result['title']}: {result['items']} of {result['expected'] or '?'} items, "
                f"{result['images']['unique']} images{f' ({odd})' if odd else ''}, {result['ties']} ties; "
                f"weights {weights if weights.startswith('tag:') else weights[:12]}, "
                f"{checkpoint.get('precision', '')}{pixels}; {result['date']}; {versions}"
            )
    return lines
