"""Pretrained tags of OpenCLIP: whether a model is the network that its weights were trained in."""

from __future__ import annotations

from open_clip_triplet.errors import CheckpointError


def check_tag(model: str, tag: str, quick_gelu: bool, flag: str = "") -> None:
    """Check that a tag exists and that its activation is the model's. OpenCLIP only warns.

    Args:
        quick_gelu: whether the model is built with QuickGELU.
        flag: the command's option that turns QuickGELU on, if it has one.

    Raises:
        CheckpointError: it does not; the message names what to use instead.
    """
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(model)
    if tag not in tags:
        raise CheckpointError(
            f"{tag!r} is neither a file nor a tag of {model}; its tags: {', '.join(tags) or 'none'}"
        )
    wanted = bool(open_clip.pretrained.get_pretrained_cfg(model, tag).get("quick_gelu", False))
    if wanted and not quick_gelu:
        raise CheckpointError(gelu_message(model, f"the tag {tag!r}", flag))
    if quick_gelu and not wanted:
        raise CheckpointError(
            f"the tag {tag!r} of {model} was trained with GELU, and QuickGELU is asked for: "
            f"use a model without -quickgelu{f', or leave out {flag}' if flag else ''}"
        )


def gelu_message(model: str, what: str, flag: str = "") -> str:
    """That ``what`` was trained with QuickGELU and ``model`` has GELU, and what to use instead."""
    return (
        f"{what} was trained with QuickGELU but {model} uses GELU, which costs several points: "
        f"use the model {model.removesuffix('-quickgelu')}-quickgelu{f', or {flag}' if flag else ''}"
    )
