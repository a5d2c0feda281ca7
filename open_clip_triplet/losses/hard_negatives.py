"""Terms on a sample's own hard negatives, beside the contrastive loss; what the field found since.

A *comparison* asks whether an anchor is more similar to its own match than to a hard negative of the
same sample: image to captions, and caption to images where negative images are read. They cost N x D,
nothing of N x N, and no rank needs another's rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from open_clip_triplet.losses.functional import similarity_gain
from open_clip_triplet.losses.ranks import SINGLE_PROCESS, Ranks

MARGINS = ("none", "fixed", "adaptive")
#: SPARCL's m0, beta and gamma, in units of logits
MARGIN, WRONG_BELOW, STEEPNESS = 0.5, -2.0, 4.0


def comparisons(images: torch.Tensor, captions: torch.Tensor) -> list[torch.Tensor]:
    """By how much each anchor prefers its match, as similarities; one [K, n] for each kind of anchor.

    Args:
        images: [1 or 2, n, D]; captions: [1 + K, n, D]. Members 0 are the positive pair, members 1 the
            negative one; other captions belong with no image.

    Returns:
        Positive image over the hard negative captions; positive caption over the negative image; and
        where both members are read, negative image and negative caption likewise.
    """
    kinds = []
    for anchors, candidates in ((images, captions), (captions, images)):
        for polarity in range(min(len(anchors), len(candidates), 2)):
            others = [other for other in range(len(candidates)) if other != polarity]
            gains = [
                similarity_gain(anchors[polarity], candidates[polarity], candidates[other]) for other in others
            ]
            if gains:
                kinds.append(torch.stack(gains))
    return kinds


def margin_loss(
    gains: list[torch.Tensor], scale: torch.Tensor, kind: str = "fixed", *, ranks: Ranks = SINGLE_PROCESS
) -> torch.Tensor:
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
    gains: list[torch.Tensor], scale: torch.Tensor, focal_gamma: float = 2.0, label_smoothing: float = 0.02, *,
    ranks: Ranks = SINGLE_PROCESS,
) -> torch.Tensor:
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
