"""Results by checkpoint, and the metrics that a table's column names.

A source is ``benchmark:subset:metric``, or ``benchmark:average`` for an average over subsets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from open_clip_triplet.errors import UsageError
from open_clip_triplet.evaluation.benchmarks import get, names
from open_clip_triplet.evaluation.report.tables import Cell, Row, gain_row
from open_clip_triplet.evaluation.results import why_not_paired

PARTIAL = "partial"


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
                raise UsageError(
                    f"two different checkpoints are called {checkpoint['name']!r}; "
                    "run one again under another name (--pretrained NAME=PATH)"
                )
            found.setdefault(checkpoint["name"], {})[result["benchmark"]] = result
        order = {name: i for i, name in enumerate(names())}
        self.by_name = {
            name: dict(sorted(by_benchmark.items(), key=lambda item: order.get(item[0], len(order))))
            for name, by_benchmark in found.items()
        }
        if baseline is not None and baseline not in self.by_name:
            raise UsageError(f"no results of the baseline {baseline!r}; there are: {', '.join(self.by_name)}")
        self.baseline = baseline or next(iter(self.by_name))
        self.names = [self.baseline, *(name for name in self.by_name if name != self.baseline)]

    def benchmarks(self) -> list[str]:
        """Every benchmark that some checkpoint has a result of."""
        return list(dict.fromkeys(b for name in self.names for b in self.by_name[name]))

    def cell(self, name: str, sources: tuple[str, ...]) -> Cell:
        """The mean of some metrics in percent; ``partial`` or empty where one is partial or absent."""
        found = [metric for source in sources if (metric := self.metric(name, source))]
        if len(found) < len(sources):
            return Cell()
        if not all(whole for _, whole in found):
            return Cell(text=PARTIAL)
        if len(found) == 1:
            return value_cell(found[0][0])
        return Cell(100 * float(np.mean([metric["value"] for metric, _ in found])))

    def metric(self, name: str, source: str) -> tuple[dict, bool] | None:
        """The {value, low, high} that a source names, and whether it is whole; None where it was not measured."""
        benchmark, *place = source.split(":")
        result = self.by_name[name].get(benchmark, {"summary": {}, "subsets": {}})
        scored = result if len(place) == 1 else result["subsets"].get(place[0], {"metrics": {}})
        metric = scored["summary" if len(place) == 1 else "metrics"].get(place[-1])
        return None if metric is None or metric["value"] is None else (metric, scored["complete"])

    def rows(self, columns: Sequence[tuple[str, ...]], gains: bool = False) -> list[Row]:
        """What was measured of each column's sources, a row per checkpoint; then the gains over the baseline."""
        rows = [Row("measured", "", name, tuple(self.cell(name, c) for c in columns)) for name in self.names]
        rows += [gain_row("gain", "", row, rows[0]) for row in rows[1:] if gains]
        return [row for row in rows if any(str(cell) for cell in row.cells)]

    def item_notes(self, sources: Iterable[str], complete: bool = True) -> list[str]:
        """A footnote for each benchmark of which not all rows stand for the same items.

        Args:
            sources: what the table shows; ``benchmark`` alone stands for all its subsets.
            complete: of the complete subsets; False: of the partial ones.
        """
        places: dict[str, list[str]] = {}
        for source in sources:
            benchmark, _, place = source.partition(":")
            places.setdefault(benchmark, []).append(place.partition(":")[0] if ":" in place else "")
        notes = []
        for benchmark, subsets in places.items():
            shown = {
                name: {
                    subset: content
                    for subset, content in self.by_name[name].get(benchmark, {"subsets": {}})["subsets"].items()
                    if content["items"] and content["complete"] == complete and {"", subset} & set(subsets)
                }
                for name in self.names
            }
            notes += _item_notes(benchmark, shown)
        return notes


def _item_notes(benchmark: str, shown: dict[str, dict[str, dict]]) -> list[str]:
    """``shown``: checkpoint -> subset -> what was scored."""
    firsts: dict[str, tuple[str, dict]] = {}
    found: dict[tuple[str, str, str], list[str]] = {}
    for name, subsets in shown.items():
        for subset, content in subsets.items():
            first, reference = firsts.setdefault(subset, (name, content))
            if why := why_not_paired(content, reference):
                found.setdefault((name, first, why), []).append(subset)
    return [
        f"{get(benchmark).title} of {name} is not to be compared with that of {first}: {why} ({', '.join(subsets)})."
        for (name, first, why), subsets in found.items()
    ]


def value_cell(numbers: dict) -> Cell:
    """{value, low, high} in 0..1 as a cell in percent."""
    value, low, high = (None if numbers[x] is None else 100 * numbers[x] for x in ("value", "low", "high"))
    return Cell(value, low, high)
