"""The paper's evaluation suite. Command line: ``tools/evaluate.py`` (= ``triplet-evaluate``).

From Python, for any object with ``encode_image`` and ``encode_text``::

    from open_clip_triplet.evaluation import evaluate
    results = evaluate(model, preprocess=preprocess, tokenizer=tokenizer,
                       benchmarks=["sugarcrepe"], data_root="data")
    results["metrics"]["sugarcrepe/overall"]
"""

__all__ = ["evaluate"]


def __getattr__(name: str):
    if name == "evaluate":
        from .run import evaluate

        return evaluate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
