"""The paper's methods as OpenCLIP loss modules; what they share is ``grouped.GroupedLoss``."""

from __future__ import annotations

from typing import Any

import torch

from open_clip_triplet.losses.cyclic import cyclic_consistency
from open_clip_triplet.losses.functional import check_neg_weight
from open_clip_triplet.losses.grouped import GroupedLoss


class ClipHnLoss(GroupedLoss):
    """CLIP with the negative pairs as ordinary pairs of the batch (the paper's LaCLIP+HN)."""

    reads_neg_images = reads_neg_captions = True

    def losses(self, images, captions, logit_scale, logit_bias):  # type: ignore[no-untyped-def]
        return super().losses(joined(images), joined(captions), logit_scale, logit_bias)


class NegClipLoss(GroupedLoss):
    """NegCLIP: images are also classified over every negative caption. See ``negclip_loss``."""

    reads_neg_captions = True


class NegImageLoss(GroupedLoss):
    """NegImage: captions are also classified over every negative image. See ``negimage_loss``."""

    reads_neg_images = True

    def losses(self, images, captions, logit_scale, logit_bias):  # type: ignore[no-untyped-def]
        return super().losses(captions, images, logit_scale, logit_bias)


class TripletClipLoss(GroupedLoss):
    """TripletCLIP, NegCLIP on the positives plus NegCLIP on the negatives. See ``triplet_clip_loss``.

    Args:
        neg_weight: weight of the second term, above 0.
        neg_images_in_text_denominator: ablation; captions are classified over all 2N images.
    """

    reads_neg_images = reads_neg_captions = True

    def __init__(
        self,
        *args: Any,
        neg_weight: float = 1.0,
        neg_images_in_text_denominator: bool = False,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.neg_weight = check_neg_weight(neg_weight)
        self.same_polarity = not neg_images_in_text_denominator

    def losses(self, images, captions, logit_scale, logit_bias):  # type: ignore[no-untyped-def]
        positive, negative = self.terms(images, captions, logit_scale, logit_bias, self.same_polarity)
        return {"positive_loss": positive, "negative_loss": self.neg_weight * negative}


class _Cyclic(GroupedLoss):
    """Adds CyCLIP's consistency terms for every set of pairs the loss reads.

    Args:
        cyclip_in_modal, cyclip_cross_modal: weights of the two terms.
    """

    neg_weight = 0.0

    def __init__(
        self, *args: Any, cyclip_in_modal: float = 0.25, cyclip_cross_modal: float = 0.25, **kwargs: Any
    ):
        super().__init__(*args, **kwargs)
        self.cyclip_weights = cyclip_in_modal, cyclip_cross_modal

    def losses(self, images, captions, logit_scale, logit_bias):  # type: ignore[no-untyped-def]
        cyclic = sum(
            weight * cyclic_consistency(left, right, *self.cyclip_weights, ranks=self.ranks)
            for weight, left, right in zip((1.0, self.neg_weight), images, captions)
        )
        return {**super().losses(images, captions, logit_scale, logit_bias), "cyclic_loss": cyclic}


class CyClipLoss(_Cyclic):
    """CyCLIP: CLIP plus consistency. See ``cyclip_loss``."""


class CyClipTripletLoss(_Cyclic, TripletClipLoss):
    """TripletCLIP plus CyCLIP's consistency on the positive and on the negative pairs (Table 15)."""


def joined(polarities: torch.Tensor) -> torch.Tensor:
    """[A, n, D] -> [1, n * A, D], in the order of the grouped rows."""
    return polarities.transpose(0, 1).flatten(0, 1)[None]
