"""Losses of TripletCLIP and its baselines: functions of features, and OpenCLIP loss modules."""

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
from open_clip_triplet.losses.modules import (
    ClipHnLoss,
    CyClipLoss,
    CyClipTripletLoss,
    NegClipLoss,
    NegImageLoss,
    TripletClipLoss,
)

__all__ = [
    "METHODS",
    "ClipHnLoss",
    "CyClipLoss",
    "CyClipTripletLoss",
    "Method",
    "NegClipLoss",
    "NegImageLoss",
    "NonFiniteLossError",
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
