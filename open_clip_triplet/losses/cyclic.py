"""CyCLIP's two consistency terms, without any N x N matrix."""

from __future__ import annotations

import torch

from open_clip_triplet.losses.ranks import SINGLE_PROCESS, Ranks


def cyclic_consistency(
    left: torch.Tensor, right: torch.Tensor, in_modal_weight: float = 0.25, cross_modal_weight: float = 0.25, *,
    ranks: Ranks = SINGLE_PROCESS,
) -> torch.Tensor:
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
    sums = torch.promote_types(left.dtype, torch.float32)
    with torch.autocast(left.device.type, enabled=False):
        a, b = (left - right).to(sums), (left + right).to(sums)
        aa, bb, ab = ranks.sum(torch.stack([a.T @ a, b.T @ b, a.T @ b]))
        norms: torch.Tensor = straight * (aa * bb).sum() + crossed * (ab * ab.T).sum()
    return norms / (len(left) * ranks.world_size)
