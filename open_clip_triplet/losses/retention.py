"""Terms that keep what a model knows: rewrites of a caption as second positives, and a teacher."""

from __future__ import annotations

import torch

from open_clip_triplet.losses.contrast import softmax_contrast
from open_clip_triplet.losses.ranks import SINGLE_PROCESS, Ranks


def paraphrase_loss(
    text_features: torch.Tensor, paraphrase_features: torch.Tensor, logit_scale: torch.Tensor, *,
    chunk_size: int | None = None, ranks: Ranks = SINGLE_PROCESS,
) -> torch.Tensor:
    """Each paraphrase classified over the N captions, of which its own is the right one.

    Args:
        text_features, paraphrase_features: [n, D]; row i of one says the same as row i of the other.

    Reference: READ, arXiv:2510.16540, github.com/JiH00nKw0n/READ-CLIP, weight 0.5.
    """
    by_paraphrase, _ = softmax_contrast(
        paraphrase_features[None], text_features[None], logit_scale, chunk_size=chunk_size, ranks=ranks
    )
    return ranks.mean(by_paraphrase[0])


def distillation_loss(
    features: torch.Tensor, teacher_features: torch.Tensor, *, ranks: Ranks = SINGLE_PROCESS
) -> torch.Tensor:
    """Squared distance of every row to the teacher's, summed over a sample's rows, mean over samples.

    DeGLA multiplies the sum over its batch of 256 by 0.005, which is 1.28 on this mean.

    Args:
        features, teacher_features: [G, n, D], the G rows of each sample.

    Reference: DeGLA, arXiv:2504.16801, github.com/xiaoxing2001/DeGLA: ``get_mse_distill_loss``.
    """
    sums = torch.promote_types(features.dtype, torch.float32)
    distances = (features.to(sums) - teacher_features.detach().to(sums)).square().sum(-1)
    return ranks.mean(distances.sum(0))
