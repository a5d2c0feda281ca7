"""The loss module that OpenCLIP's parsed arguments ask for."""

from __future__ import annotations

import dataclasses
from typing import Any

from open_clip_triplet.losses.flags import check_supported
from open_clip_triplet.losses.methods import CYCLIP_OPTIONS, TRIPLET_OPTIONS, find_method


def create_loss(args: Any) -> Any:
    """The loss module for OpenCLIP's parsed arguments; its own for ``--loss clip``.

    Raises:
        UsageError: an unknown loss, or a combination that the loss does not support.
    """
    method = find_method(getattr(args, "loss", "clip"))
    check_supported(args)
    if method.name == "clip":
        import open_clip

        return open_clip.create_loss(args)
    from open_clip_triplet.losses.grouped import GroupedLoss, LossOptions

    options = {
        "local_loss": getattr(args, "local_loss", False),
        "gather_with_grad": getattr(args, "gather_with_grad", False),
        "cache_labels": True,
        "rank": getattr(args, "rank", None),
        "world_size": getattr(args, "world_size", None),
        "use_horovod": getattr(args, "horovod", False),
    }
    if issubclass(method.loss, GroupedLoss):
        shared = {field.name for field in dataclasses.fields(LossOptions)}
        names = {"neg_captions", *method.options} & (shared | set(TRIPLET_OPTIONS + CYCLIP_OPTIONS))
        options |= {name: getattr(args, name) for name in names if hasattr(args, name)}
        options["accum_freq"] = getattr(args, "accum_freq", 1)
        options["chunk_size"] = getattr(args, "loss_chunk_size", None)
        options["sigmoid"] = getattr(args, "siglip", False)
    return method.loss(**options)
