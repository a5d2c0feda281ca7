"""The paper's evaluation suite. Command line: ``tools/evaluate.py`` (= ``triplet-evaluate``).

From Python, for any object with ``encode_image`` and ``encode_text``::

    from open_clip_triplet.evaluation import evaluate
    results = evaluate(model, preprocess=preprocess, tokenizer=tokenizer,
                       benchmarks=["sugarcrepe"], data_root="data")
    results["sugarcrepe/overall"]
"""

__all__ = ["evaluate", "require_data"]


def __getattr__(name: str):
    if name in __all__:
        from open_clip_triplet.evaluation import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
