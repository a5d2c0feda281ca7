"""Losses of TripletCLIP and its baselines: functions of features, and OpenCLIP loss modules.

The functions cost torch alone; the modules, which subclass OpenCLIP's ``ClipLoss``, load with it on
first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from open_clip_triplet.errors import NonFiniteLossError
from open_clip_triplet.losses.cyclic import cyclic_consistency
from open_clip_triplet.losses.functional import (
    clip_loss,
    cyclip_loss,
    negclip_loss,
    negimage_loss,
    triplet_clip_loss,
)
from open_clip_triplet.losses.methods import METHODS, Method, add_loss_arguments, check_supported, create_loss
from open_clip_triplet.losses.ranks import Ranks

if TYPE_CHECKING:
    from open_clip_triplet.losses.modules import (
        ClipHnLoss,
        CyClipLoss,
        CyClipTripletLoss,
        GroupedLoss,
        NegClipLoss,
        NegImageLoss,
        TripletClipLoss,
    )

_MODULES = (
    "ClipHnLoss", "CyClipLoss", "CyClipTripletLoss", "GroupedLoss", "NegClipLoss", "NegImageLoss", "TripletClipLoss",
)

__all__ = [
    "METHODS",
    "ClipHnLoss",
    "CyClipLoss",
    "CyClipTripletLoss",
    "GroupedLoss",
    "Method",
    "NegClipLoss",
    "NegImageLoss",
    "NonFiniteLossError",
    "Ranks",
    "TripletClipLoss",
    "add_loss_arguments",
    "check_supported",
    "clip_loss",
    "create_loss",
    "cyclic_consistency",
    "cyclip_loss",
    "negclip_loss",
    "negimage_loss",
    "triplet_clip_loss",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module("open_clip_triplet.losses.modules"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
