"""Terms that are added to a contrastive loss: consistency, a sample's own hard negatives, paraphrases, a teacher.

n samples on this rank, D width; ``scale`` is the logit scale, already exponentiated. Only ``paraphrase_loss``
compares samples with each other; the others cost n x D, or D x D.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from open_clip_triplet.losses.contrast import softmax_contrast, wide
from open_clip_triplet.losses.ranks import SINGLE_PROCESS, Ranks

MARGINS = ("none", "fixed", "adaptive")
#: SPARCL's m0, beta and gamma, in units of logits
MARGIN, WRONG_BELOW, STEEPNESS = 0.5, -2.0, 4.0


def similarity(left: Tensor, right: Tensor) -> Tensor:
    """Product of each row with its own of the other side, [..., n, D] -> [..., n]."""
    with torch.autocast(left.device.type, enabled=False):
        return (wide(left) * wide(right)).sum(-1)


def similarity_gain(anchor: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """How much more similar each anchor is to ``left`` than to ``right``; [..., n, D] -> [..., n].

    The difference is taken before the product, so that near rows do not cancel.
    """
    return similarity(anchor, wide(left) - wide(right))


def all_but(index: int, rows: Tensor) -> Tensor:
    """[K, n, D] -> [K - 1, n, D]."""
    return torch.cat([rows[:index], rows[index + 1 :]])


def comparisons(images: Tensor, captions: Tensor) -> list[Tensor]:
    """By how much each anchor is more similar to its own match than to the hard negatives of the same sample.

    Args:
        images: [1 or 2, n, D]; captions: [1 + K, n, D]. Members 0 are the positive pair, members 1 the
            negative one; other captions belong with no image.

    Returns:
        One [K, n] for each kind of anchor: positive image over the hard negative captions; positive caption
        over the negative image; and where both members are read, negative image and negative caption likewise.
    """
    return [
        similarity_gain(anchor, match, all_but(polarity, candidates))
        for anchors, candidates in ((images, captions), (captions, images))
        for polarity, (anchor, match) in enumerate(zip(anchors[:2], candidates[:2]))
        if len(candidates) > 1
    ]


def margin_loss(gains: list[Tensor], scale: Tensor, kind: str = "fixed", *, ranks: Ranks = SINGLE_PROCESS) -> Tensor:
    """Hinge on the difference d between an anchor's logit for its match and for its own hard negative.

    "fixed": max(0, m0 - d). "adaptive": where d < beta the hard negative is taken for wrong (a synthetic
    image that failed) and weighs nothing; from beta to m0 the margin shrinks from (1 + gamma) m0 to m0.
    That margin is a constant to autograd, so between beta and m0 the gradient is the fixed margin's.

    Args:
        gains: of ``comparisons``. scale: multiplies them. kind: one of ``MARGINS`` but "none".

    Returns:
        The sum over kinds of anchors of the mean over samples and negatives.

    Reference: SPARCL, CVPR 2025, github.com/lihaoxin05/SPARCL: ``ada_margin_loss``, weight 0.01.
    """
    total = scale.new_zeros(())
    for gain in gains:
        d = scale * gain
        if kind == "adaptive":
            rest = 1 - (d.detach() - WRONG_BELOW) / (MARGIN - WRONG_BELOW)
            margin = MARGIN * (1 + STEEPNESS * rest.clamp(min=0))
            hinge = torch.where(d >= WRONG_BELOW, F.relu(margin - d), 0.0)
        else:
            hinge = F.relu(MARGIN - d)
        total = total + ranks.mean(hinge.mean(0))
    return total


def own_classification_loss(
    gains: list[Tensor], scale: Tensor, focal_gamma: float = 2.0, label_smoothing: float = 0.02, *,
    ranks: Ranks = SINGLE_PROCESS,
) -> Tensor:
    """Each anchor classified over its own match and its own K hard negatives, focal and smoothed.

    With p_c the softmax over the 1 + K classes, -sum_c q_c (1 - p_c)^gamma log p_c, where q is the label
    smoothed by epsilon. gamma = epsilon = 0 is the cross-entropy of CLIC's Eq. 5 and DeGLA's
    image-grounded contrast.

    Returns:
        The sum over kinds of anchors of the mean over samples.

    Reference: FSC-CLIP, EMNLP 2024, github.com/ytaek-oh/fsc-clip: ``Global_HNLoss``, weight 0.5.
    """
    total = scale.new_zeros(())
    for gain in gains:
        logits = torch.cat([torch.zeros_like(gain[:1]), -scale * gain])
        log_p = logits.log_softmax(0)
        labels = torch.full_like(log_p, label_smoothing / len(log_p))
        labels[0] += 1 - label_smoothing
        # exact where p is near 1, and finite where gamma < 1 would divide by 1 - p
        focal = (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).tiny) ** focal_gamma
        total = total + ranks.mean(-(labels * focal * log_p).sum(0))
    return total


def paraphrase_loss(
    text_features: Tensor, paraphrase_features: Tensor, scale: Tensor, *, chunk_size: int | None = None,
    ranks: Ranks = SINGLE_PROCESS,
) -> Tensor:
    """Each paraphrase classified over the N captions of all ranks, of which its own is the right one.

    Args:
        text_features, paraphrase_features: [n, D]; row i of one says the same as row i of the other.

    Reference: READ, arXiv:2510.16540, github.com/JiH00nKw0n/READ-CLIP, weight 0.5.
    """
    by_paraphrase, _ = softmax_contrast(
        paraphrase_features[None], text_features[None], scale, chunk_size=chunk_size, ranks=ranks
    )
    return ranks.mean(by_paraphrase[0])


def distillation_loss(features: Tensor, teacher_features: Tensor, *, ranks: Ranks = SINGLE_PROCESS) -> Tensor:
    """Squared distance of every row to the teacher's, summed over a sample's rows, mean over samples.

    DeGLA multiplies the sum over its batch of 256 by 0.005, which is 1.28 on this mean.

    Args:
        features, teacher_features: [G, n, D], the G rows of each sample.

    Reference: DeGLA, arXiv:2504.16801, github.com/xiaoxing2001/DeGLA: ``get_mse_distill_loss``.
    """
    distances = (wide(features) - wide(teacher_features.detach())).square().sum(-1)
    return ranks.mean(distances.sum(0))


def cyclic_consistency(
    left: Tensor, right: Tensor, in_modal_weight: float = 0.25, cross_modal_weight: float = 0.25, *,
    ranks: Ranks = SINGLE_PROCESS,
) -> Tensor:
    """Weighted sum of CyCLIP's in-modal and cross-modal term, of unscaled similarities.

    In-modal: ``sum_jk (x_j . x_k - y_j . y_k)^2 / N``; cross-modal: ``sum_jk (x_j . y_k - x_k . y_j)^2 / N``.
    With A = X - Y and B = X + Y the two matrices are (A B' + B A') / 2 and (A B' - B A') / 2. Their
    squared norms, (<A'A, B'B> + <A'B, B'A>) / 2 and the same with a minus, take D x D products only
    and, unlike the expanded square, do not cancel where X is close to Y.

    Args:
        left, right: [n, D] of this rank; row i of one belongs with row i of the other.

    Returns:
        Scalar, the same on every rank; gradients as in ``Ranks.sum``.

    Reference: Goel et al., NeurIPS 2022, arXiv:2205.14459.
    """
    straight = (in_modal_weight + cross_modal_weight) / 2
    crossed = (in_modal_weight - cross_modal_weight) / 2
    with torch.autocast(left.device.type, enabled=False):
        left, right = wide(left), wide(right)
        a, b = left - right, left + right
        aa, bb, ab = ranks.sum(torch.stack([a.T @ a, b.T @ b, a.T @ b]))
        norms: Tensor = straight * (aa * bb).sum() + crossed * (ab * ab.T).sum()
    return norms / (len(left) * ranks.world_size)
