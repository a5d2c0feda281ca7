"""TripletCLIP for OpenCLIP: losses, paired shards and training hooks."""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

#: what the package offers -> where it lies; loaded on first use, so that building shards needs no OpenCLIP
_EXPORTS = {
    **{
        name: "losses"
        for name in (
            "METHODS", "ClipHnLoss", "CyClipLoss", "CyClipTripletLoss", "NegClipLoss", "NegImageLoss",
            "TripletClipLoss", "clip_loss", "create_loss", "cyclip_loss", "negclip_loss", "negimage_loss",
            "triplet_clip_loss",
        )
    },
    "hooks": "hooks",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_EXPORTS[name]}")
    return module if name == _EXPORTS[name] else getattr(module, name)
