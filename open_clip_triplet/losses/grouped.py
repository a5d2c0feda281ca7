"""The base of the losses as OpenCLIP loss modules over grouped rows; ``methods`` has the paper's.

A sample's rows are neighbours: images ``[x0, x0', x1, x1', ...]``, captions ``[y0, y0', y1, ...]`` (or
``y0, y0'a, y0'b, ...`` with several negative captions), one row where a method reads no negative of
that modality. So OpenCLIP's feature accumulation and rank-ordered gathering keep samples whole.

Ranks share the work whatever ``local_loss`` and ``gather_with_grad`` say: each takes its own queries
against everybody's keys, and after DDP's or FSDP's averaging the gradients of encoders and
``logit_scale`` are those of one process on the joined batch.
"""

from __future__ import annotations

from collections.abc import ValuesView
from typing import Any

import torch
from open_clip.loss import ClipLoss
from torch import Tensor

from open_clip_triplet.errors import UsageError
from open_clip_triplet.losses.contrast import sigmoid_contrast
from open_clip_triplet.losses.functional import negclip_terms
from open_clip_triplet.losses.guard import FiniteGuard
from open_clip_triplet.losses.options import ADDED_TERMS, HARD_NEGATIVE_TERMS, LossOptions
from open_clip_triplet.losses.ranks import Ranks
from open_clip_triplet.losses.terms import (
    comparisons,
    distillation_loss,
    margin_loss,
    own_classification_loss,
    paraphrase_loss,
    similarity,
)

LOCAL_LOSS = (
    "--local-loss without --gather-with-grad drops the gradient that the other ranks' losses have for this rank's "
    "features, so the encoders train on a wrong gradient. Add --gather-with-grad, or leave both out: the result is "
    "exact and as cheap."
)


class LossDict(dict[str, Tensor]):
    """Addends of a loss, named ``*_loss``, and numbers that the log shows beside them.

    OpenCLIP sums the addends and logs every item. 4.x sums those named ``*_loss``; 3.x sums ``values()``,
    which therefore leaves the others out.
    """

    def values(self) -> ValuesView[Tensor]:  # type: ignore[override]
        return {name: value for name, value in self.items() if name.endswith("_loss")}.values()


class GroupedLoss(ClipLoss):
    """Base of the losses over grouped rows; same constructor as OpenCLIP's, plus keywords.

    Args:
        rank, world_size: None, for both, asks torch.distributed's default group at each call.
        accum_freq: OpenCLIP's ``--accum-freq``. Its loop calls the loss that many times per step on
            the same features, which multiplies the gradient of ``logit_scale``; this divides it.
        chunk_size: rows of the similarity matrix formed at a time, None for automatic.
        sigmoid: SigLIP's loss over the same pairs, with the model's ``logit_bias``.
        options: fields of ``LossOptions``.

    Raises:
        ValueError: ``local_loss`` without ``gather_with_grad``, or Horovod.
    """

    #: the hard negatives of a sample that this loss reads, and whether of captions any number
    reads_neg_images = False
    reads_neg_captions = False
    several_neg_captions = True
    supports_sigmoid = True
    #: options that mean something to this loss; those that need one of them do too
    flags: tuple[str, ...] = ("neg_scope", *HARD_NEGATIVE_TERMS, *ADDED_TERMS)
    #: whether ranks compare their numbers of rows, for which the host waits for the device in every step
    check_rows = True

    def __init__(
        self, local_loss: bool = False, gather_with_grad: bool = False, cache_labels: bool = False,
        rank: int | None = None, world_size: int | None = None, use_horovod: bool = False, *, accum_freq: int = 1,
        chunk_size: int | None = None, sigmoid: bool = False, **options: Any,
    ):
        super().__init__(local_loss, gather_with_grad, cache_labels, rank or 0, world_size or 1)
        if use_horovod:
            raise ValueError(f"{type(self).__name__} runs on torch.distributed, not Horovod; use torchrun")
        if local_loss and not gather_with_grad:
            raise ValueError(LOCAL_LOSS)
        self.image_group = 1 + self.reads_neg_images
        self.options = LossOptions(**options)
        #: captions, positive and negative; then a paraphrase; then units with their hard negatives
        self.text_rows = [
            1 + self.options.neg_captions * self.reads_neg_captions,
            int(self.options.paraphrase_weight > 0),
            2 * self.options.units,
        ]
        self.text_group = sum(self.text_rows)
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
        self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor | float,
        logit_bias: Tensor | None = None, output_dict: bool = False, dist_image_features: Tensor | None = None,
        dist_text_features: Tensor | None = None, dist_logit_scale: Tensor | None = None,
        dist_logit_bias: Tensor | None = None,
    ) -> Tensor | LossDict:
        """The loss of all ranks' samples, the same scalar on every rank.

        Args:
            image_features: [n * image_group, D] grouped rows of this rank.
            text_features: [n * text_group, D].
            logit_scale: scalar tensor, already exponentiated.
            logit_bias: scalar tensor; matters to the sigmoid loss alone.
            output_dict: return a ``LossDict`` of addends and of ``metrics``.
            dist_image_features, dist_text_features: the teacher's, of the same rows.

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
        if self.check_rows:
            self.ranks.require_equal_rows(image_features)
        scale = scalar(logit_scale, self.accum_freq)
        bias = None if logit_bias is None else scalar(logit_bias, self.accum_freq)
        step = self.calls // self.accum_freq
        losses = self.all_losses(images, captions, scale, bias, step)
        if dist_image_features is not None and dist_text_features is not None:
            teacher_images = split_groups(dist_image_features, self.image_group, "teacher's image")
            teacher_captions = split_groups(dist_text_features, self.text_group, "teacher's text")
            ours, theirs = torch.cat([images, captions]), torch.cat([teacher_images, teacher_captions])
            distance = distillation_loss(ours, theirs, ranks=self.ranks)
            losses["distill_loss"] = self.options.distill_weight * distance
        total = torch.stack(list(losses.values())).sum()
        self.guard.watch(step, total, scale, image_features, text_features)
        self.calls += 1
        return losses if output_dict else total

    def check_finite(self) -> None:
        """Raise ``NonFiniteLossError`` if any loss so far was not finite. Waits for the device."""
        self.guard.check()

    def all_losses(self, images: Tensor, captions: Tensor, scale: Tensor, bias: Tensor | None, step: int) -> LossDict:
        """``losses``, or a plain step's, with the terms that the options add, and ``metrics``."""
        options, ranks = self.options, self.ranks
        shared: dict[str, Any] = {"chunk_size": self.chunk_size, "ranks": ranks}
        members, paraphrases, units = captions.split(self.text_rows)
        gains = comparisons(images, members)
        if options.plain_every and (step + 1) % options.plain_every == 0:
            losses = LossDict(plain_loss=self.terms(images[:1], captions[:1], scale, bias)[0])
        else:
            losses = self._addends(self.losses(images, members, scale, bias))
            if options.margin != "none":
                hinge = margin_loss(gains, scale, options.margin, ranks=ranks)
                losses["margin_loss"] = options.margin_weight * hinge
            if options.hard_negative_weight:
                focal = options.focal_gamma, options.label_smoothing
                own = own_classification_loss(gains, scale, *focal, ranks=ranks)
                losses["hard_negative_loss"] = options.hard_negative_weight * own
            if options.units:
                pairs = units.unflatten(0, (options.units, 2))
                by_unit = [negclip_terms(images[:1], pair, scale, neg_scope="own", **shared) for pair in pairs]
                losses["unit_loss"] = options.unit_weight * torch.stack(by_unit).mean()
        for paraphrase in paraphrases:
            rewrite = paraphrase_loss(captions[0], paraphrase, scale, **shared)
            losses["paraphrase_loss"] = options.paraphrase_weight * rewrite
        losses.update(metrics(images, members, gains))
        return losses

    def _addends(self, found: Any) -> LossDict:
        """What ``losses`` gave, which may be the user's own."""
        losses = LossDict(found) if isinstance(found, dict) else LossDict()
        if not losses.values() or any(addend.ndim for addend in losses.values()):
            gave = ", ".join(f"{name} {list(value.shape)}" for name, value in losses.items()) or type(found).__name__
            raise UsageError(
                f"{type(self).__name__}.losses() must give a dict of scalars named *_loss; it gave {gave}"
            )
        return losses

    def losses(
        self, images: Tensor, captions: Tensor, logit_scale: Tensor, logit_bias: Tensor | None
    ) -> dict[str, Tensor]:
        """Addends of the loss, named ``*_loss``, from images [image_group, n, D] and captions [text_group, n, D]."""
        return {"contrastive_loss": self.terms(images, captions, logit_scale, logit_bias)[0]}

    def terms(
        self, images: Tensor, captions: Tensor, logit_scale: Tensor, logit_bias: Tensor | None,
        same_polarity: bool = True,
    ) -> Tensor:
        """[A] for pairs of A polarities: ``negclip_terms``, or SigLIP's loss of every image over all captions."""
        shared: dict[str, Any] = {"chunk_size": self.chunk_size, "ranks": self.ranks}
        if self.sigmoid:
            if logit_bias is None:
                raise ValueError("the sigmoid loss needs a model with logit_bias; pass --siglip to training")
            return self.ranks.mean(sigmoid_contrast(images, captions, logit_scale, logit_bias, **shared))
        shared |= {"neg_scope": self.options.neg_scope, "same_polarity": same_polarity}
        terms = negclip_terms(images, captions, logit_scale, **shared)
        # A bias cancels in every softmax; DDP still wants to see its (zero) gradient.
        return terms if logit_bias is None else terms + 0 * logit_bias


@torch.no_grad()
def metrics(images: Tensor, captions: Tensor, gains: list[Tensor]) -> dict[str, Tensor]:
    """What the log shows of this rank's samples, beside the loss.

    ``positive_similarity``, ``neg_caption_similarity`` and ``neg_image_similarity`` are mean cosines of
    the positive pair and of its image (caption) with the hard negative caption (image); ``margin`` is
    the mean over samples of the smallest of ``comparisons``, and ``group_score`` the share of samples in
    which all of them are right, ties being wrong.
    """
    shown = {"positive_similarity": similarity(images[0], captions[0])}
    if len(captions) > 1:
        shown["neg_caption_similarity"] = similarity(images[0], captions[1:])
    if len(images) > 1:
        shown["neg_image_similarity"] = similarity(captions[0], images[1])
    if gains:
        shown["margin"] = torch.cat(gains).amin(0)
        shown["group_score"] = (shown["margin"] > 0).float()
    return {name: values.mean() for name, values in shown.items()}


def scalar(value: Tensor | float, divisor: int) -> Tensor:
    """[], or [1] as FSDP keeps it, -> [], with its gradient divided."""
    tensor = torch.as_tensor(value).clone()
    if divisor > 1 and tensor.requires_grad:
        tensor.register_hook(lambda gradient: gradient / divisor)
    return tensor.reshape(())


def split_groups(rows: Tensor, group: int, name: str) -> Tensor:
    """Grouped rows [n * group, D] -> polarities [group, n, D]."""
    if rows.ndim != 2 or not len(rows) or len(rows) % group:
        raise ValueError(
            f"{name} rows {tuple(rows.shape)} do not divide into samples of {group} rows; is the data "
            "pipeline built for the same --loss and --neg-captions?"
        )
    return rows.view(-1, group, rows.shape[1]).transpose(0, 1)
