"""The paper's methods as OpenCLIP loss modules; what they share is ``grouped.GroupedLoss``."""

from __future__ import annotations

import torch

from open_clip_triplet.losses.cyclic import cyclic_consistency
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

    Takes ``neg_weight`` and ``neg_images_in_text_denominator`` of ``LossOptions``.
    """

    reads_neg_images = reads_neg_captions = True

    def losses(self, images, captions, logit_scale, logit_bias):  # type: ignore[no-untyped-def]
        same_polarity = not self.options.neg_images_in_text_denominator
        positive, negative = self.terms(images, captions, logit_scale, logit_bias, same_polarity)
        return {"positive_loss": positive, "negative_loss": self.options.neg_weight * negative}


class CyClipLoss(GroupedLoss):
    """CyCLIP: CLIP plus consistency of every set of pairs that is read. See ``cyclip_loss``.

    Takes ``cyclip_in_modal`` and ``cyclip_cross_modal`` of ``LossOptions``.
    """

    def losses(self, images, captions, logit_scale, logit_bias):  # type: ignore[no-untyped-def]
        options = self.options
        weights = options.cyclip_in_modal, options.cyclip_cross_modal
        cyclic = sum(
            weight * cyclic_consistency(left, right, *weights, ranks=self.ranks)
            for weight, left, right in zip((1.0, options.neg_weight), images, captions)
        )
        return {**super().losses(images, captions, logit_scale, logit_bias), "cyclic_loss": cyclic}


class CyClipTripletLoss(CyClipLoss, TripletClipLoss):
    """TripletCLIP plus CyCLIP's consistency on the positive and on the negative pairs (Table 15)."""


def joined(polarities: torch.Tensor) -> torch.Tensor:
    """[A, n, D] -> [1, n * A, D], in the order of the grouped rows."""
    return polarities.transpose(0, 1).flatten(0, 1)[None]
