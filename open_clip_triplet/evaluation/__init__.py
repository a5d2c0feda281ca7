"""The paper's evaluation suite. Command line: ``triplet-evaluate``.

From Python, for any object with ``encode_image`` and ``encode_text``::

    from open_clip_triplet.evaluation import evaluate
    results = evaluate(model, preprocess=preprocess, tokenizer=tokenizer,
                       benchmarks=["sugarcrepe"], data_root="data")
    results["sugarcrepe/overall"]
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from open_clip_triplet.evaluation.benchmarks.tripletdata import composition_scores as composition_scores
    from open_clip_triplet.evaluation.run import evaluate as evaluate
    from open_clip_triplet.evaluation.run import require_data as require_data

#: public name -> the module that has it, imported when first asked for
_HOMES = {
    "composition_scores": "benchmarks.tripletdata",
    "evaluate": "run",
    "require_data": "run",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
