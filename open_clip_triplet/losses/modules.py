"""The losses as OpenCLIP loss modules over grouped rows.

A sample's rows are neighbours: images ``[x0, x0', x1, x1', ...]``, captions ``[y0, y0', y1, ...]`` (or
``y0, y0'a, y0'b, ...`` with several negative captions), one row where a method reads no negative of
that modality. So OpenCLIP's feature accumulation and rank-ordered gathering keep samples whole.

Ranks share the work whatever ``local_loss`` and ``gather_with_grad`` say: each takes its own queries
against everybody's keys, and after DDP's or FSDP's averaging the gradients of encoders and
``logit_scale`` are those of one process on the joined batch.
"""

from __future__ import annotations

from typing import Any

import torch
from open_clip.loss import ClipLoss  # type: ignore[import-untyped]

from open_clip_triplet.losses.cyclic import cyclic_consistency
from open_clip_triplet.losses.functional import (
    check_neg_scope,
    check_neg_weight,
    negclip_terms,
    sigmoid_terms,
)
from open_clip_triplet.losses.guard import FiniteGuard
from open_clip_triplet.losses.ranks import Ranks


class GroupedLoss(ClipLoss):  # type: ignore[misc]
    """Base of the losses over grouped rows; same constructor as OpenCLIP's, plus keywords.

    Args:
        rank, world_size: None, for both, asks torch.distributed's default group at each call.
        neg_captions: K, negative captions per sample.
        neg_scope: whose hard negatives a row meets, see ``negclip_terms``.
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
        rank: int | None = None,
        world_size: int | None = None,
        use_horovod: bool = False,
        *,
        neg_captions: int = 1,
        neg_scope: str = "batch",
        accum_freq: int = 1,
        chunk_size: int | None = None,
        sigmoid: bool = False,
    ):
        super().__init__(local_loss, gather_with_grad, cache_labels, rank or 0, world_size or 1)
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
        self.neg_scope = check_neg_scope(neg_scope)
        self.accum_freq, self.chunk_size, self.sigmoid = accum_freq, chunk_size, sigmoid
        self.given_ranks = None if world_size is None else Ranks(rank or 0, world_size)
        self.calls = 0
        self.guard = FiniteGuard()

    @property
    def ranks(self) -> Ranks:
        """This process and how many share the batch with it."""
        return self.given_ranks or Ranks.from_process_group()

    # The engine is made of large products that a compiler cannot improve; it runs as it is.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(
        self,
        image_features: torch.Tensor,
        text_features: torch.Tensor,
        logit_scale: torch.Tensor | float,
        logit_bias: torch.Tensor | None = None,
        output_dict: bool = False,
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """The loss of all ranks' samples, the same scalar on every rank.

        Args:
            image_features: [n * image_group, D] grouped rows of this rank.
            text_features: [n * text_group, D].
            logit_scale: scalar tensor, already exponentiated.
            logit_bias: scalar tensor; matters to the sigmoid loss alone.
            output_dict: return a dict of addends, whose names end in ``_loss``.

        Raises:
            ValueError: rows that do not divide into groups, images and captions of different
                numbers of samples, or ranks with different numbers of rows.
            NonFiniteLossError: the loss is not finite (on an accelerator, some calls later).
        """
        images = split_groups(image_features, self.image_group, "image")
        captions = split_groups(text_features, self.text_group, "text")
        if images.shape[1:] != captions.shape[1:]:
            raise ValueError(
                f"image rows {tuple(image_features.shape)} in groups of {self.image_group} and text rows "
                f"{tuple(text_features.shape)} in groups of {self.text_group} are not the same samples"
            )
        self.ranks.require_equal_rows(image_features)
        # FSDP keeps scalars as [1].
        scale = divide_gradient(torch.as_tensor(logit_scale), self.accum_freq).reshape(())
        if logit_bias is not None:
            logit_bias = divide_gradient(logit_bias, self.accum_freq).reshape(())
        losses = self.losses(images, captions, scale, logit_bias)
        total = torch.stack(list(losses.values())).sum()
        self.guard.watch(self.calls // self.accum_freq, total, scale, image_features, text_features)
        self.calls += 1
        return losses if output_dict else total

    def check_finite(self) -> None:
        """Raise ``NonFiniteLossError`` if any loss so far was not finite. Waits for the device."""
        self.guard.check()

    def losses(
        self,
        images: torch.Tensor,
        captions: torch.Tensor,
        logit_scale: torch.Tensor,
        logit_bias: torch.Tensor | None,
    ) -> dict[str, torch.Tensor]:
        """Addends of the loss, from images [image_group, n, D] and captions [text_group, n, D]."""
        return {"contrastive_loss": self.terms(images, captions, logit_scale, logit_bias)[0]}

    def terms(
        self,
        images: torch.Tensor,
        captions: torch.Tensor,
        logit_scale: torch.Tensor,
        logit_bias: torch.Tensor | None,
        same_polarity: bool = True,
    ) -> torch.Tensor:
        """The softmax or the sigmoid loss [A] of pairs of A polarities, see ``negclip_terms``."""
        shared: dict[str, Any] = {"chunk_size": self.chunk_size, "ranks": self.ranks}
        if self.sigmoid:
            if logit_bias is None:
                raise ValueError("the sigmoid loss needs a model with logit_bias; pass --siglip to training")
            return sigmoid_terms(images, captions, logit_scale, logit_bias, **shared)
        shared |= {"neg_scope": self.neg_scope, "same_polarity": same_polarity}
        terms = negclip_terms(images, captions, logit_scale, **shared)
        # A bias cancels in every softmax; DDP still wants to see its (zero) gradient.
        return terms if logit_bias is None else terms + 0 * logit_bias


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


class _DivideGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, divisor: int) -> torch.Tensor:
        ctx.divisor = divisor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient / ctx.divisor, None


def divide_gradient(tensor: torch.Tensor, divisor: int) -> torch.Tensor:
    """``tensor`` itself, with its gradient divided."""
    if divisor == 1:
        return tensor
    divided: torch.Tensor = _DivideGradient.apply(tensor, divisor)
    return divided


def split_groups(rows: torch.Tensor, group: int, name: str) -> torch.Tensor:
    """Grouped rows [n * group, D] -> polarities [group, n, D]."""
    if rows.ndim != 2 or not len(rows) or len(rows) % group:
        raise ValueError(
            f"{name} rows {tuple(rows.shape)} do not divide into samples of {group} rows; is the data "
            "pipeline built for the same --loss and --neg-captions?"
        )
    return rows.view(-1, group, rows.shape[1]).transpose(0, 1)


def joined(polarities: torch.Tensor) -> torch.Tensor:
    """[A, n, D] -> [1, n * A, D], in the order of the grouped rows."""
    return polarities.transpose(0, 1).flatten(0, 1)[None]
