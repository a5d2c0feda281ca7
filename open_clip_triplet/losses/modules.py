"""The losses as OpenCLIP loss modules over grouped rows.

A sample's rows are neighbours: images ``[x0, x0', x1, x1', ...]``, captions ``[y0, y0', y1, ...]`` (or
``y0, y0'a, y0'b, ...`` with several negative captions), one row where a method reads no negative of
that modality. So OpenCLIP's feature accumulation and rank-ordered gathering keep samples whole.

Ranks share the work whatever ``local_loss`` and ``gather_with_grad`` say: each takes its own queries
against everybody's keys, and after DDP's or FSDP's averaging the gradients of encoders and
``logit_scale`` are those of one process on the joined batch.
"""

from __future__ import annotations

import torch
from open_clip.loss import ClipLoss

from open_clip_triplet.losses.contrast import sigmoid_contrast, softmax_contrast
from open_clip_triplet.losses.cyclic import cyclic_consistency
from open_clip_triplet.losses.functional import check_neg_weight
from open_clip_triplet.losses.guard import FiniteGuard
from open_clip_triplet.losses.ranks import Ranks


class GroupedLoss(ClipLoss):
    """Base of the losses over grouped rows; same constructor as OpenCLIP's, plus keywords.

    Args:
        neg_captions: K, negative captions per sample.
        accum_freq: OpenCLIP's ``--accum-freq``. Its loop calls the loss that many times per step on
            the same features, which multiplies the gradient of ``logit_scale``; this divides it.
        chunk_size: rows of the similarity matrix formed at a time, None for automatic.
        sigmoid: SigLIP's loss over the same pairs, with the model's ``logit_bias``.

    Raises:
        ValueError: ``local_loss`` without ``gather_with_grad``, or Horovod.
    """

    reads_neg_images = False
    reads_neg_captions = False

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
        *,
        neg_captions: int = 1,
        accum_freq: int = 1,
        chunk_size: int | None = None,
        sigmoid: bool = False,
    ):
        super().__init__(local_loss, gather_with_grad, cache_labels, rank, world_size)
        if use_horovod:
            raise ValueError(f"{type(self).__name__} runs on torch.distributed, not Horovod; use torchrun")
        if local_loss and not gather_with_grad:
            raise ValueError(
                "--local-loss without --gather-with-grad drops the gradient that the other ranks' losses "
                "have for this rank's features, so the encoders train on a wrong gradient. "
                "Add --gather-with-grad, or leave both out: the result is exact and as cheap."
            )
        self.image_group = 1 + self.reads_neg_images
        self.text_group = 1 + neg_captions * self.reads_neg_captions
        self.accum_freq, self.chunk_size, self.sigmoid = accum_freq, chunk_size, sigmoid
        self.ranks = Ranks(rank, world_size)
        self.calls = 0
        self.guard = FiniteGuard()

    # The sweep is made of large products that a compiler cannot improve; it runs as it is.
    @torch.compiler.disable
    def forward(self, image_features, text_features, logit_scale, logit_bias=None, output_dict=False):
        """The loss of all ranks' samples, the same scalar on every rank.

        Args:
            image_features: [n * image_group, D] grouped rows of this rank.
            text_features: [n * text_group, D].
            logit_scale: scalar tensor, already exponentiated.
            logit_bias: scalar tensor; matters to the sigmoid loss alone.
            output_dict: return ``{"contrastive_loss": ...}``, addends whose names end in ``_loss``.

        Raises:
            ValueError: rows that do not divide into groups, or images and captions of different
                numbers of samples.
            NonFiniteLossError: the loss is not finite (on an accelerator, some calls later).
        """
        images = split_groups(image_features, self.image_group, "image")
        captions = split_groups(text_features, self.text_group, "text")
        if images.shape[1:] != captions.shape[1:]:
            raise ValueError(
                f"image rows {tuple(image_features.shape)} in groups of {self.image_group} and text rows "
                f"{tuple(text_features.shape)} in groups of {self.text_group} are not the same samples"
            )
        # FSDP keeps scalars as [1].
        logit_scale = divide_gradient(logit_scale, self.accum_freq).reshape(())
        if logit_bias is not None:
            logit_bias = divide_gradient(logit_bias, self.accum_freq).reshape(())
        losses = self.losses(images, captions, logit_scale, logit_bias)
        total = sum(losses.values())
        self.guard.watch(self.calls // self.accum_freq, total, logit_scale, image_features, text_features)
        self.calls += 1
        return losses if output_dict else total

    def check_finite(self) -> None:
        """Raise ``NonFiniteLossError`` if any loss so far was not finite. Waits for the device."""
        self.guard.check()

    def losses(self, images, captions, logit_scale, logit_bias) -> dict[str, torch.Tensor]:
        """Addends of the loss, from images [image_group, n, D] and captions [text_group, n, D]."""
        return {"contrastive_loss": self.contrast(images, captions, logit_scale, logit_bias)}

    def contrast(self, queries, keys, logit_scale, logit_bias, weights=(1.0,), own_side=True):
        """The softmax or the sigmoid loss between sides of queries and sides of keys."""
        shared = {"weights": weights, "chunk_size": self.chunk_size, "ranks": self.ranks}
        if not self.sigmoid:
            loss = softmax_contrast(queries, keys, logit_scale, own_side=own_side, **shared)
            # A bias cancels in every softmax; DDP still wants to see its (zero) gradient.
            return loss if logit_bias is None else loss + 0 * logit_bias
        if logit_bias is None:
            raise ValueError("the sigmoid loss needs a model with logit_bias; pass --siglip to training")
        return sigmoid_contrast(queries, keys, logit_scale, logit_bias, **shared)


class ClipHnLoss(GroupedLoss):
    """CLIP with the negative pairs as ordinary pairs of the batch (the paper's LaCLIP+HN)."""

    reads_neg_images = reads_neg_captions = True

    def losses(self, images, captions, logit_scale, logit_bias):
        return super().losses(joined(images), joined(captions), logit_scale, logit_bias)


class NegClipLoss(GroupedLoss):
    """NegCLIP: images are also classified over every negative caption. See ``negclip_loss``."""

    reads_neg_captions = True


class NegImageLoss(GroupedLoss):
    """NegImage: captions are also classified over every negative image. See ``negimage_loss``."""

    reads_neg_images = True

    def losses(self, images, captions, logit_scale, logit_bias):
        return super().losses(captions, images, logit_scale, logit_bias)


class TripletClipLoss(GroupedLoss):
    """TripletCLIP, NegCLIP on the positives plus NegCLIP on the negatives. See ``triplet_clip_loss``.

    Args:
        neg_weight: weight of the second term, above 0.
        neg_images_in_text_denominator: ablation; captions are classified over all 2N images.
    """

    reads_neg_images = reads_neg_captions = True

    def __init__(self, *args, neg_weight=1.0, neg_images_in_text_denominator=False, **kwargs):
        super().__init__(*args, **kwargs)
        self.weights = (1.0, check_neg_weight(neg_weight))
        self.own_side = not neg_images_in_text_denominator

    def contrast(self, queries, keys, logit_scale, logit_bias):
        return super().contrast(queries, keys, logit_scale, logit_bias, self.weights, self.own_side)


class _Cyclic:
    """Adds CyCLIP's consistency terms for every set of pairs the loss reads.

    Args:
        cyclip_in_modal, cyclip_cross_modal: weights of the two terms.
    """

    weights: tuple[float, ...] = (1.0,)

    def __init__(self, *args, cyclip_in_modal=0.25, cyclip_cross_modal=0.25, **kwargs):
        super().__init__(*args, **kwargs)
        self.cyclip_weights = cyclip_in_modal, cyclip_cross_modal

    def losses(self, images, captions, logit_scale, logit_bias):
        cyclic = sum(
            weight * cyclic_consistency(left, right, *self.cyclip_weights, ranks=self.ranks)
            for weight, left, right in zip(self.weights, images, captions)
        )
        return {**super().losses(images, captions, logit_scale, logit_bias), "cyclic_loss": cyclic}


class CyClipLoss(_Cyclic, GroupedLoss):
    """CyCLIP: CLIP plus consistency. See ``cyclip_loss``."""


class CyClipTripletLoss(_Cyclic, TripletClipLoss):
    """TripletCLIP plus CyCLIP's consistency on the positive and on the negative pairs (Table 15)."""


class _DivideGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, divisor):
        ctx.divisor = divisor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx, gradient):
        return gradient / ctx.divisor, None


def divide_gradient(tensor: torch.Tensor, divisor: int) -> torch.Tensor:
    """``tensor`` itself, with its gradient divided."""
    return tensor if divisor == 1 else _DivideGradient.apply(tensor, divisor)


def split_groups(rows: torch.Tensor, group: int, name: str) -> torch.Tensor:
    """Grouped rows [n * group, D] -> sides [group, n, D]."""
    if rows.ndim != 2 or not len(rows) or len(rows) % group:
        raise ValueError(
            f"{name} rows {tuple(rows.shape)} do not divide into samples of {group} rows; is the data "
            "pipeline built for the same --loss and --neg-captions?"
        )
    return rows.view(-1, group, rows.shape[1]).transpose(0, 1)


def joined(sides: torch.Tensor) -> torch.Tensor:
    """[A, n, D] -> [1, n * A, D], in the order of the grouped rows."""
    return sides.transpose(0, 1).flatten(0, 1)[None]
