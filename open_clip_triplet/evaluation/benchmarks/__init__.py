"""The benchmarks, one small module each. A module offers ``BENCHMARK``; here they are found by name."""

from __future__ import annotations

import importlib

from open_clip_triplet.errors import DataError, MissingData
from open_clip_triplet.evaluation.benchmarks.base import Benchmark

#: name -> module; the paper's first, then those beyond it
_MODULES = {
    "sugarcrepe": "sugarcrepe",
    "winoground": "winoground",
    "valse": "valse",
    "cola": "cola",
    "retrieval": "retrieval",
    "zeroshot": "zeroshot",
    "tripletdata": "paired",
    "aro": "aro",
    "sugarcrepe_pp": "sugarcrepe_pp",
    "bivlc": "bivlc",
    "negbench": "negbench",
}

PAPER_SUITE = ("sugarcrepe", "winoground", "valse", "cola", "retrieval", "zeroshot", "tripletdata")

__all__ = ["PAPER_SUITE", "Benchmark", "DataError", "MissingData", "get", "names"]


def names() -> list[str]:
    """All benchmark names, the paper's first."""
    return list(_MODULES)


def get(name: str) -> Benchmark:
    """A benchmark by name.

    Raises:
        ValueError: unknown; the known names are listed.
    """
    if name not in _MODULES:
        raise ValueError(f"unknown benchmark {name!r}; known: {', '.join(names())}")
    return importlib.import_module(f".{_MODULES[name]}", __name__).BENCHMARK
