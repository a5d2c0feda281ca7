"""``triplet-evaluate data``: what a benchmark expects, what is there, under which licence, from where."""

from __future__ import annotations

import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from open_clip_triplet.errors import DataError, UsageError
from open_clip_triplet.evaluation.benchmarks import Benchmark
from open_clip_triplet.evaluation.benchmarks.sugarcrepe import SIZES as SUGARCREPE
from open_clip_triplet.evaluation.benchmarks.sugarcrepe_pp import SIZES as SUGARCREPE_PP
from open_clip_triplet.evaluation.benchmarks.valse import SIZES as VALSE
from open_clip_triplet.files import write_whole

_GITHUB = "https://raw.githubusercontent.com"
_COLA = "COLA_multiobjects_matching_benchmark.json"
#: benchmark -> {path under the data root: address}: annotations under MIT; images are the user's to fetch
DOWNLOADS = {
    "sugarcrepe": {
        f"sugar-crepe/{name}.json": f"{_GITHUB}/RAIVNLab/sugar-crepe/main/data/{name}.json"
        for name in SUGARCREPE
    },
    "sugarcrepe_pp": {
        f"scpp/data/{name}.json": f"{_GITHUB}/Sri-Harsha/scpp/main/data/{name}.json" for name in SUGARCREPE_PP
    },
    "valse": {
        f"valse/{name}.json": f"{_GITHUB}/Heidelberg-NLP/VALSE/main/data/{name}.json" for name in VALSE
    },
    "cola": {f"cola/{_COLA}": f"{_GITHUB}/arijitray1993/COLA/main/data/{_COLA}"},
}


def overview(benchmarks: Sequence[Benchmark], root: Path) -> str:
    """A table: a line per benchmark."""
    rows = [("benchmark", "items", "found", "download", "licence")]
    for benchmark in benchmarks:
        expected = sum(benchmark.expected.values())
        found = _usable(benchmark, root)
        rows.append(
            (
                benchmark.name,
                f"{expected:,}" if expected else "yours" if benchmark.name == "tripletdata" else "?",
                "no" if found is None else f"{found:,}" if found != expected else "all",
                benchmark.size or "-",
                benchmark.licence,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    aligned = [
        f"{name:<{widths[0]}}  {items:>{widths[1]}}  {found:>{widths[2]}}  {size:<{widths[3]}}  {licence}"
        for name, items, found, size, licence in rows
    ]
    return "\n".join(aligned)


def _usable(benchmark: Benchmark, root: Path) -> int | None:
    """Items of the expected subsets whose images are there; None where there is no data."""
    try:
        tasks = benchmark.load(root)
    except DataError:
        return None
    counted = [task for name, task in tasks.items() if name in benchmark.expected or not benchmark.expected]
    return sum(all(ref.exists() for ref in item.images) for task in counted for item in task.items)


def describe(benchmark: Benchmark, root: Path) -> str:
    """A few lines on one benchmark: state, layout, licence, source."""
    lines = [f"{benchmark.name} — {benchmark.title} ({benchmark.reference})"]
    lines += [f"  found     {line}" for line in _found(benchmark, root)]
    lines += [f"  expected  {place}" for place in benchmark.layout]
    lines += [f"  licence   {benchmark.licence}", f"  from      {benchmark.source}", ""]
    return "\n".join(lines)


def _found(benchmark: Benchmark, root: Path) -> list[str]:
    try:
        tasks = benchmark.load(root)
    except DataError as error:
        return [str(error).splitlines()[0]]
    lines = []
    for name, task in tasks.items():
        task.drop_missing()
        expected = "?" if task.expected is None else task.expected
        why = ", ".join(f"{count} {reason}" for reason, count in task.dropped.items())
        note = "; ".join(x for x in (why, task.note) if x)
        lines.append(f"{name}: {len(task.items)} of {expected} items" + (f" ({note})" if note else ""))
    lines += [f"{name}: no file" for name in benchmark.expected if name not in tasks]
    return lines


def download(name: str, root: Path) -> None:
    """Fetch a benchmark's annotations; files that are there are left alone.

    Raises:
        UsageError: its files may not be fetched by a program, or their address does not answer.
    """
    if name not in DOWNLOADS:
        raise UsageError(
            f"{name}: nothing to download freely (only {', '.join(DOWNLOADS)}); "
            f"`triplet-evaluate data --benchmarks {name}` says where it is"
        )
    for place, address in DOWNLOADS[name].items():
        path = root / place
        if path.exists():
            continue
        print(f"{address} -> {path}", file=sys.stderr)
        try:
            with urllib.request.urlopen(address, timeout=60) as answer, write_whole(path) as file:
                file.write(answer.read())
        except OSError as error:
            raise UsageError(f"{address}: {error}") from error
