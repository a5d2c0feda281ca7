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
from open_clip_triplet.losses.methods import METHODS, Method, create_loss, find_method
from open_clip_triplet.losses.options import add_loss_arguments, check_supported
from open_clip_triplet.losses.ranks import Ranks

if TYPE_CHECKING:
    from open_clip_triplet.losses.grouped import GroupedLoss
    from open_clip_triplet.losses.modules import (
        ClipHnLoss,
        CyClipLoss,
        CyClipTripletLoss,
        NegClipLoss,
        NegImageLoss,
        TripletClipLoss,
    )

#: loaded with OpenCLIP, on first use -> the module that has them
_MODULES = ("ClipHnLoss", "CyClipLoss", "CyClipTripletLoss", "NegClipLoss", "NegImageLoss", "TripletClipLoss")
_LAZY = {"GroupedLoss": "grouped", **dict.fromkeys(_MODULES, "modules")}

__all__ = [
    "ClipHnLoss", "CyClipLoss", "CyClipTripletLoss", "GroupedLoss", "NegClipLoss", "NegImageLoss", "TripletClipLoss",
    "METHODS", "Method", "NonFiniteLossError", "Ranks", "add_loss_arguments", "check_supported", "clip_loss",
    "create_loss", "cyclic_consistency", "cyclip_loss", "find_method", "negclip_loss", "negimage_loss",
    "triplet_clip_loss",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
