"""The benchmarks, one module each, named as the benchmark; a module offers ``BENCHMARK``."""

from __future__ import annotations

import importlib
import pkgutil

from open_clip_triplet.errors import UsageError
from open_clip_triplet.evaluation.benchmarks.base import Benchmark

PAPER_SUITE = ("sugarcrepe", "winoground", "valse", "cola", "retrieval", "zeroshot", "tripletdata")

#: benchmarks of retention; every other one is of composition
RETENTION = ("retrieval", "zeroshot", "long_retrieval")
SUITES = ("paper", "composition", "all")

__all__ = [
    "PAPER_SUITE",
    "RETENTION",
    "SUITES",
    "Benchmark",
    "get",
    "names",
    "suite",
]


def names() -> list[str]:
    """All benchmark names: the paper's, then those beyond it by name."""
    found = {m.name for m in pkgutil.iter_modules(__path__) if m.name != "base" and m.name[0] != "_"}
    return [*PAPER_SUITE, *sorted(found.difference(PAPER_SUITE))]


def suite(which: str) -> list[str]:
    """Benchmark names of a suite: the paper's seven, all benchmarks of composition, or all.

    Raises:
        UsageError: no such suite.
    """
    if which not in SUITES:
        raise UsageError(f"unknown suite {which!r}; known: {', '.join(SUITES)}")
    if which == "paper":
        return list(PAPER_SUITE)
    return [name for name in names() if which == "all" or name not in RETENTION]


def get(name: str) -> Benchmark:
    """A benchmark by name.

    Raises:
        UsageError: unknown; the known names are listed.
    """
    if name not in names():
        raise UsageError(f"unknown benchmark {name!r}; known: {', '.join(names())}")
    return importlib.import_module(f".{name}", __name__).BENCHMARK
