"""OpenCLIP models that score and embed pairs, with the weights that belong to them."""

from __future__ import annotations

import os

from open_clip_triplet.errors import CheckpointError, PipelineError
from open_clip_triplet.pretrained import check_tag
from open_clip_triplet.tripletdata.run.stage import model_name

#: prefixes of a model that brings its weights
WITH_WEIGHTS = ("local-dir:", "hf-hub:")


def provenance(model: str, pretrained: str | None) -> str:
    """A model and its weights, as a sample's json names them.

    >>> provenance("ViT-B-32-quickgelu", "openai"), provenance("local-dir:clip", "")
    ('ViT-B-32-quickgelu/openai', 'local-dir:clip')
    """
    return "/".join(map(model_name, filter(None, (model, pretrained))))


def check_weights(model: str, pretrained: str | None) -> None:
    """Check that a model is not left random, and that a tag is one of its own, activation included.

    Raises:
        PipelineError: it is not; the message says what to use instead.
    """
    if model.startswith(WITH_WEIGHTS):
        return
    if not pretrained:
        raise PipelineError(
            f"{model} without weights is a random network: name its tag or a checkpoint file, "
            "or a model that brings its weights (local-dir:FOLDER, hf-hub:OWNER/NAME)", 2
        )
    if os.path.isfile(pretrained):
        return
    import open_clip

    config = open_clip.get_model_config(model)
    if config is None:
        return  # no such model: loading says so
    try:
        check_tag(model, pretrained, bool(config.get("quick_gelu", False)))
    except CheckpointError as error:
        raise PipelineError(str(error), 2) from error


def load_openclip(model: str, pretrained: str | None, device: str, precision: str = "fp32") -> tuple:
    """(model in eval mode, preprocess, tokenizer).

    Raises:
        PipelineError: OpenCLIP is missing, or model and weights do not fit.
    """
    try:
        import open_clip
    except ImportError as error:
        raise PipelineError("scores and features need OpenCLIP: pip install open_clip_torch") from error
    check_weights(model, pretrained)
    try:
        network, _, preprocess = open_clip.create_model_and_transforms(
            model, pretrained=pretrained or None, device=device, precision=precision
        )
        return network.eval(), preprocess, open_clip.get_tokenizer(model)
    except (OSError, RuntimeError, ValueError) as error:
        weights = f" with {pretrained!r}" if pretrained else ""
        raise PipelineError(f"cannot load {model!r}{weights}: {error}") from error
