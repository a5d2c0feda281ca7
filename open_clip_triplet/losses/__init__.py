"""Losses of TripletCLIP and its baselines: functions of features, and OpenCLIP loss modules.

The functions cost torch alone. The modules subclass OpenCLIP's ``ClipLoss``; they and their table load on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from open_clip_triplet.errors import NonFiniteLossError
from open_clip_triplet.losses.functional import (
    clip_loss,
    cyclip_loss,
    negclip_loss,
    negimage_loss,
    triplet_clip_loss,
)
from open_clip_triplet.losses.options import add_loss_arguments
from open_clip_triplet.losses.ranks import Ranks
from open_clip_triplet.losses.terms import cyclic_consistency

if TYPE_CHECKING:
    from open_clip_triplet.losses.grouped import GroupedLoss
    from open_clip_triplet.losses.methods import (
        METHODS,
        ClipHnLoss,
        CyClipLoss,
        CyClipTripletLoss,
        Method,
        NegClipLoss,
        NegImageLoss,
        TripletClipLoss,
        check_supported,
        create_loss,
        find_method,
    )

__all__ = [
    "ClipHnLoss", "CyClipLoss", "CyClipTripletLoss", "GroupedLoss", "NegClipLoss", "NegImageLoss", "TripletClipLoss",
    "METHODS", "Method", "NonFiniteLossError", "Ranks", "add_loss_arguments", "check_supported", "clip_loss",
    "create_loss", "cyclic_consistency", "cyclip_loss", "find_method", "negclip_loss", "negimage_loss",
    "triplet_clip_loss",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(f"{__name__}.methods"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
