"""The base of the losses as OpenCLIP loss modules over grouped rows; ``modules`` has the methods.

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

from open_clip_triplet.losses.functional import negclip_terms, sigmoid_terms, similarity_gain
from open_clip_triplet.losses.guard import FiniteGuard
from open_clip_triplet.losses.hard_negatives import comparisons, margin_loss, own_classification_loss
from open_clip_triplet.losses.options import LossOptions
from open_clip_triplet.losses.ranks import Ranks
from open_clip_triplet.losses.retention import distillation_loss, paraphrase_loss


class LossDict(dict[str, torch.Tensor]):
    """Addends of a loss, named ``*_loss``, and numbers that the log shows beside them.

    OpenCLIP sums the addends and logs every item. 4.x sums those named ``*_loss``; 3.x sums ``values()``,
    which therefore leaves the others out.
    """

    def values(self) -> ValuesView[torch.Tensor]:  # type: ignore[override]
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

    reads_neg_images = False
    reads_neg_captions = False
    #: whether ranks compare their numbers of rows, for which the host waits for the device in every step
    check_rows = True

    def __init__(
        self, local_loss: bool = False, gather_with_grad: bool = False, cache_labels: bool = False,
        rank: int | None = None, world_size: int | None = None, use_horovod: bool = False, *,
        accum_freq: int = 1, chunk_size: int | None = None, sigmoid: bool = False, **options: Any,
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
        self, image_features: torch.Tensor, text_features: torch.Tensor, logit_scale: torch.Tensor | float,
        logit_bias: torch.Tensor | None = None, output_dict: bool = False,
        dist_image_features: torch.Tensor | None = None, dist_text_features: torch.Tensor | None = None,
        dist_logit_scale: torch.Tensor | None = None, dist_logit_bias: torch.Tensor | None = None,
    ) -> torch.Tensor | LossDict:
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
        # FSDP keeps scalars as [1].
        scale = divide_gradient(torch.as_tensor(logit_scale), self.accum_freq).reshape(())
        if logit_bias is not None:
            logit_bias = divide_gradient(logit_bias, self.accum_freq).reshape(())
        losses = self.all_losses(images, captions, scale, logit_bias)
        if dist_image_features is not None and dist_text_features is not None:
            teacher = split_groups(dist_image_features, self.image_group, "teacher's image")
            distance = distillation_loss(images, teacher, ranks=self.ranks)
            teacher = split_groups(dist_text_features, self.text_group, "teacher's text")
            distance = distance + distillation_loss(captions, teacher, ranks=self.ranks)
            losses["distill_loss"] = self.options.distill_weight * distance
        total = torch.stack(list(losses.values())).sum()
        self.guard.watch(self.calls // self.accum_freq, total, scale, image_features, text_features)
        self.calls += 1
        return losses if output_dict else total

    def check_finite(self) -> None:
        """Raise ``NonFiniteLossError`` if any loss so far was not finite. Waits for the device."""
        self.guard.check()

    def all_losses(
        self, images: torch.Tensor, captions: torch.Tensor, logit_scale: torch.Tensor,
        logit_bias: torch.Tensor | None,
    ) -> LossDict:
        """``losses``, or a plain step's, with the terms that the options add, and ``metrics``."""
        options, ranks = self.options, self.ranks
        members, paraphrases, units = torch.split(captions, self.text_rows)
        gains = comparisons(images, members)
        step = self.calls // self.accum_freq
        losses = LossDict()
        if options.plain_every and step % options.plain_every == options.plain_every - 1:
            losses["plain_loss"] = self.terms(images[:1], captions[:1], logit_scale, logit_bias)[0]
        else:
            losses.update(self.losses(images, members, logit_scale, logit_bias))
            if options.margin != "none":
                hinge = margin_loss(gains, logit_scale, options.margin, ranks=ranks)
                losses["margin_loss"] = options.margin_weight * hinge
            if options.hard_negative_weight:
                focal = options.focal_gamma, options.label_smoothing
                own = own_classification_loss(gains, logit_scale, *focal, ranks=ranks)
                losses["hard_negative_loss"] = options.hard_negative_weight * own
            if options.units:
                pairs = [units[first : first + 2] for first in range(0, len(units), 2)]
                shared: dict[str, Any] = {"chunk_size": self.chunk_size, "ranks": ranks}
                terms = [negclip_terms(images[:1], p, logit_scale, neg_scope="own", **shared) for p in pairs]
                losses["unit_loss"] = options.unit_weight * torch.stack(terms).mean()
        for paraphrase in paraphrases:
            term = paraphrase_loss(
                captions[0], paraphrase, logit_scale, chunk_size=self.chunk_size, ranks=ranks
            )
            losses["paraphrase_loss"] = options.paraphrase_weight * term
        losses.update(metrics(images, members, gains))
        return losses

    def losses(
        self, images: torch.Tensor, captions: torch.Tensor, logit_scale: torch.Tensor,
        logit_bias: torch.Tensor | None,
    ) -> dict[str, torch.Tensor]:
        """Addends of the loss, from images [image_group, n, D] and captions [text_group, n, D]."""
        return {"contrastive_loss": self.terms(images, captions, logit_scale, logit_bias)[0]}

    def terms(
        self, images: torch.Tensor, captions: torch.Tensor, logit_scale: torch.Tensor,
        logit_bias: torch.Tensor | None, same_polarity: bool = True,
    ) -> torch.Tensor:
        """The softmax or the sigmoid loss [A] of pairs of A polarities, see ``negclip_terms``."""
        shared: dict[str, Any] = {"chunk_size": self.chunk_size, "ranks": self.ranks}
        if self.sigmoid:
            if logit_bias is None:
                raise ValueError("the sigmoid loss needs a model with logit_bias; pass --siglip to training")
            return sigmoid_terms(images, captions, logit_scale, logit_bias, **shared)
        shared |= {"neg_scope": self.options.neg_scope, "same_polarity": same_polarity}
        terms = negclip_terms(images, captions, logit_scale, **shared)
        # A bias cancels in every softmax; DDP still wants to see its (zero) gradient.
        return terms if logit_bias is None else terms + 0 * logit_bias


@torch.no_grad()
def metrics(
    images: torch.Tensor, captions: torch.Tensor, gains: list[torch.Tensor]
) -> dict[str, torch.Tensor]:
    """What the log shows of this rank's samples, beside the loss.

    ``positive_similarity``, ``neg_caption_similarity`` and ``neg_image_similarity`` are mean cosines of
    the positive pair and of its image (caption) with the hard negative caption (image); ``margin`` is
    the mean over samples of the smallest of ``comparisons``, and ``group_score`` the share of samples in
    which all of them are right, ties being wrong.
    """

    def mean_similarity(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return similarity_gain(left, right, torch.zeros_like(right)).mean()

    shown = {"positive_similarity": mean_similarity(images[0], captions[0])}
    if len(captions) > 1:
        shown["neg_caption_similarity"] = mean_similarity(images[0].expand_as(captions[1:]), captions[1:])
    if len(images) > 1:
        shown["neg_image_similarity"] = mean_similarity(captions[0], images[1])
    if gains:
        smallest = torch.cat(gains).amin(0)
        shown["margin"], shown["group_score"] = smallest.mean(), (smallest > 0).float().mean()
    return shown


def divide_gradient(tensor: torch.Tensor, divisor: int) -> torch.Tensor:
    """``tensor`` itself, with its gradient divided."""
    tensor = tensor.clone()
    if divisor > 1 and tensor.requires_grad:
        tensor.register_hook(lambda gradient: gradient / divisor)
    return tensor


def split_groups(rows: torch.Tensor, group: int, name: str) -> torch.Tensor:
    """Grouped rows [n * group, D] -> polarities [group, n, D]."""
    if rows.ndim != 2 or not len(rows) or len(rows) % group:
        raise ValueError(
            f"{name} rows {tuple(rows.shape)} do not divide into samples of {group} rows; is the data "
            "pipeline built for the same --loss and --neg-captions?"
        )
    return rows.view(-1, group, rows.shape[1]).transpose(0, 1)
