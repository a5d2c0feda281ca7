"""``report --reference``: known models beside ours, and metrics that papers define in two ways."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from open_clip_triplet.errors import UsageError
from open_clip_triplet.evaluation.benchmarks import get
from open_clip_triplet.evaluation.benchmarks.base import tree_leaves, tree_mean
from open_clip_triplet.evaluation.report.package_data import load_toml, read
from open_clip_triplet.evaluation.report.sources import Results
from open_clip_triplet.evaluation.report.tables import Block, Cell, Row, mark_best


@dataclass(frozen=True)
class KnownModel:
    """A published row. ``values``: source -> percent."""

    model: str
    weights: str
    family: str
    values: dict[str, float]

    @property
    def label(self) -> str:
        return f"{self.model} {self.weights}"

    def value(self, source: str) -> float | None:
        """The value that a source names, in percent; averages are made from their subsets."""
        if source in self.values:
            return self.values[source]
        benchmark, *place = source.split(":")
        described = get(benchmark)
        if len(place) != 1 or described.groups is None:
            return None
        averages = dict(described.averages + described.flat_averages + described.pooled)
        leaves = tree_leaves(described.groups)
        metric = averages.get(place[0])
        found = [self.values.get(f"{benchmark}:{leaf}:{metric}") for leaf in leaves]
        known = [value for value in found if value is not None]
        if len(known) < len(leaves):
            return None
        if place[0] in dict(described.pooled):
            return float(np.average(known, weights=[described.expected[leaf] for leaf in leaves]))
        groups = tuple(leaves) if place[0] in dict(described.flat_averages) else described.groups
        return float(tree_mean(groups, dict(zip(leaves, map(np.asarray, known)))))


def known_models(which: str = "") -> list[KnownModel]:
    """Published rows: the well-known ones for ``""``, all for ``"all"``, else those that contain the text.

    Raises:
        ValueError: no row contains the text.
    """
    settings = load_toml("reference.toml")
    models = [_model(row) for row in csv.DictReader(io.StringIO(read("vl_compo.csv")))]
    if which == "all":
        return models
    if not which:
        return [m for m in models if m.family in settings["families"] or m.weights in settings["weights"]]
    found = [m for m in models if which.lower() in f"{m.label} {m.family}".lower()]
    if not found:
        families = ", ".join(dict.fromkeys(m.family for m in models))
        raise UsageError(f"no known model contains {which!r}; there are {len(models)}, of {families}")
    return found


def _model(row: dict[str, str]) -> KnownModel:
    model, weights, family = (row.pop(name) for name in ("model", "pretrained", "family"))
    return KnownModel(model, weights, family, {source: float(value) for source, value in row.items()})


def composition_block(results: Results, which: str | None = None) -> Block | None:
    """One headline of every benchmark of composition, with known models below where asked for.

    Args:
        which: the known models to show, see ``known_models``; None for none.
    """
    settings = load_toml("reference.toml")
    columns = [(upper, name, tuple(sources)) for upper, name, sources in settings["columns"]]
    rows = results.rows([sources for *_, sources in columns])
    notes = []
    if which is not None:
        rows += [
            Row("reference", f"published: {model.family}", model.label, _cells(model, columns))
            for model in known_models(which)
        ]
        notes.append(f"Published values: {settings['source']}.")
    kept = [i for i in range(len(columns)) if any(str(row.cells[i]) for row in rows)]
    if not kept:
        return None
    shown = [source for i in kept for source in columns[i][2]]
    notes += [*twofold_notes(shown), *results.item_notes(shown)]
    rows = [replace(row, cells=tuple(row.cells[i] for i in kept)) for row in rows]
    headings = tuple(columns[i][:2] for i in kept)
    title = "Composition benchmarks" + (" and known models" if which is not None else "")
    return Block("composition", title, headings, mark_best(rows), notes)


def _cells(model: KnownModel, columns: list) -> tuple[Cell, ...]:
    cells = []
    for *_, sources in columns:
        values = [value for source in sources if (value := model.value(source)) is not None]
        cells.append(Cell(float(np.mean(values))) if len(values) == len(sources) else Cell())
    return tuple(cells)


def twofold_notes(sources: Iterable[str]) -> list[str]:
    """For each benchmark that papers define in two ways: how it is defined here, and elsewhere."""
    definitions = load_toml("reference.toml")["twofold"]
    benchmarks = dict.fromkeys(source.partition(":")[0] for source in sources)
    return [definitions[benchmark] for benchmark in benchmarks if benchmark in definitions]


def published(benchmark: str) -> list[dict]:
    """Models whose headlines the authors of a benchmark print: ``model``, ``source``, ``values`` by headline."""
    return [entry for entry in load_toml("reference.toml")["published"] if entry["benchmark"] == benchmark]
