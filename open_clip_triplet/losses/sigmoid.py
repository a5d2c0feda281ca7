"""SigLIP's loss over the pairs of ``contrast``, with the same blocks and the same legend."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from open_clip_triplet.losses.contrast import BlockwiseLogits, gather_keys
from open_clip_triplet.losses.ranks import SINGLE_PROCESS, Ranks


def sigmoid_contrast(
    queries: torch.Tensor,
    keys: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    *,
    chunk_size: int | None = None,
    ranks: Ranks = SINGLE_PROCESS,
) -> torch.Tensor:
    """SigLIP over the same matrix: every query meets every key, and its own key is the one match.

    Args: as ``softmax_contrast``; ``bias`` is a scalar added to the logits.

    Returns:
        [A, n]: for each of this rank's queries, the sum over all keys of
        -log sigmoid(z * (scale * similarity + bias)), z = 1 for its own key and -1 otherwise.
    """
    by_query: torch.Tensor = _SigmoidContrast.apply(queries, keys, scale, bias, chunk_size, ranks)
    return by_query


class _SigmoidContrast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries, keys, scale, bias, chunk_size, ranks):  # type: ignore[no-untyped-def]
        logits = BlockwiseLogits(queries, gather_keys(keys, ranks), scale, chunk_size, ranks)
        by_query = logits.empty(*queries.shape[:2])
        for block in logits.blocks():
            block_logits = logits(block).add_(bias)
            # softplus(-z) = softplus(z) - z: all pairs as mismatches, then the matches corrected
            by_query[block.rows] = F.softplus(block_logits).sum(1) - logits.pairs(block, block_logits)
        ctx.save_for_backward(queries, logits.keys, scale, bias)
        ctx.options = chunk_size, ranks
        return by_query

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_query):  # type: ignore[no-untyped-def]
        queries, keys, scale, bias = ctx.saved_tensors
        chunk_size, ranks = ctx.options
        logits = BlockwiseLogits(queries, keys, scale, chunk_size, ranks, ctx.needs_input_grad)
        bias_gradient = torch.zeros_like(logits.scale)
        for block in logits.blocks():
            gradient = logits(block).add_(bias).sigmoid_()
            logits.pairs(block, gradient).sub_(1)
            gradient.mul_(by_query[block.rows][:, None])
            bias_gradient += gradient.sum()
            logits.add_gradient(block, gradient)
        return *logits.gradients(), bias_gradient, None, None
