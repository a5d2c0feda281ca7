"""Softmax and sigmoid contrast between queries and keys: the engine of every loss.

Both form the similarity matrix block by block and return the gradients with the value. The softmax
over keys is known as soon as a block of queries has met all keys; the softmax over queries needs
the log-sum-exp of whole columns, so a product over those columns precedes the sweep. In N x N
products, for TripletCLIP: 2 for the columns, 4 for the logits, 8 for the gradients, and up to 2 are
saved by keeping blocks of the first. The plain form takes 18. Legend: see ``sweep``.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from open_clip_triplet.losses.ranks import Ranks
from open_clip_triplet.losses.sweep import Block, Sweep, WithGradients

#: numbers kept from the pass over columns, as a multiple of those in the keys: memory stays linear in N
KEPT_PER_KEY = 8

ALONE = Ranks()


def softmax_contrast(
    queries: torch.Tensor,
    keys: torch.Tensor,
    scale: torch.Tensor,
    *,
    weights: tuple[float, ...] = (1.0,),
    own_side: bool = True,
    chunk_size: int | None = None,
    ranks: Ranks = ALONE,
) -> torch.Tensor:
    """Cross-entropy of each query over all keys, and of each paired key over the queries.

    The sum over sides a of ``weights[a] / 2 * (CE of query (a, i) over the B * N keys + CE of key
    (a, i) over queries)``, each a mean over i. Keys of sides A and up only fill denominators.

    Args:
        queries: [A, n, D], this rank's.
        keys: [B, n, D], this rank's, B >= A.
        scale: scalar that multiplies the similarities.
        weights: one per side of queries, above 0.
        own_side: key (a, i) is classified over the N queries of side a, else over all A * N.
        chunk_size: rows of queries per block; None is automatic.
        ranks: where the other samples are. Gradients come multiplied by ``world_size``, so that
            the average over ranks taken by DDP and FSDP is the gradient of the whole batch.

    Returns:
        Scalar in nats, the same on every rank.
    """
    needed = _gradients_needed(queries, keys, scale)

    def compute(queries, keys, scale):
        sweep = Sweep(queries, keys, scale, chunk_size, ranks, needed)
        over_queries, kept = _logsumexp_over_queries(sweep, own_side)
        relative = over_queries - over_queries.new_tensor(weights).log().repeat_interleave(sweep.samples)
        for block in sweep.blocks():
            weight = weights[block.side]
            columns = _columns(sweep, block, own_side)
            logits, softmax = _block_logits(sweep, block, columns, kept), sweep.buffer(1, block)
            pairs = sweep.pairs(block, logits).clone()
            largest = logits.amax(1)
            torch.softmax(logits, 1, out=softmax)
            # The largest probability is at least 1 / (B * N), so its logarithm is finite.
            over_keys = largest - softmax.amax(1).log_()
            own_keys = over_queries[sweep.first_pair(block) :][: len(logits)]
            sweep.set_losses(block, weight * (over_keys + own_keys - 2 * pairs))
            if any(needed):
                softmax[:, columns] += logits[:, columns].sub_(relative[columns] + math.log(weight)).exp_()
                sweep.pairs(block, softmax).sub_(2)
                sweep.add_gradient(block, softmax if weight == 1 else softmax.mul_(weight))
        return sweep.result(per_sample=0.5 / sweep.samples)

    return WithGradients.apply(compute, queries, keys, scale)


def _columns(sweep: Sweep, block: Block, own_side: bool) -> slice:
    """Columns of the keys that are classified over a block's queries."""
    first, count = (block.side, 1) if own_side else (0, sweep.sides)
    return slice(first * sweep.samples, (first + count) * sweep.samples)


def _logsumexp_over_queries(sweep: Sweep, own_side: bool) -> tuple[torch.Tensor, dict[Block, torch.Tensor]]:
    """For each of the A * N paired keys, over every rank's queries; and the blocks of logits kept."""
    total = sweep.empty(sweep.sides * sweep.samples).fill_(-math.inf)
    kept, room = {}, KEPT_PER_KEY * sweep.keys.numel()
    for block in sweep.blocks():
        columns = _columns(sweep, block, own_side)
        logits = sweep.logits(block, columns)
        if logits.numel() <= room:
            room -= logits.numel()
            kept[block] = logits.clone()
        largest = logits.amax(0)
        sums = logits.sub_(largest).exp_().sum(0)
        torch.logaddexp(total[columns], sums.log_().add_(largest), out=total[columns])
    return sweep.ranks.logsumexp_(total), kept


def _block_logits(
    sweep: Sweep, block: Block, columns: slice, kept: dict[Block, torch.Tensor]
) -> torch.Tensor:
    """Logits [stop - start, B * N] of a block, of which ``columns`` may have been kept."""
    if block not in kept:
        return sweep.logits(block)
    logits = sweep.buffer(0, block)
    logits[:, columns] = kept.pop(block)
    for rest in (slice(0, columns.start), slice(columns.stop, len(sweep.keys))):
        if rest.start < rest.stop:
            sweep.logits(block, rest, out=logits[:, rest])
    return logits


def sigmoid_contrast(
    queries: torch.Tensor,
    keys: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    *,
    weights: tuple[float, ...] = (1.0,),
    chunk_size: int | None = None,
    ranks: Ranks = ALONE,
) -> torch.Tensor:
    """SigLIP over the same matrix: every query meets every key, and its own key is the one match.

    The sum over sides a of ``weights[a] / N * sum -log sigmoid(z * (scale * similarity + bias))``
    over the queries of side a and all B * N keys, z = 1 for a pair and -1 otherwise. Arguments as
    ``softmax_contrast``; ``bias`` is a scalar.
    """
    needed = _gradients_needed(queries, keys, scale, bias)

    def compute(queries, keys, scale, bias):
        sweep = Sweep(queries, keys, scale, chunk_size, ranks, needed)
        bias_gradient = sweep.empty(1).zero_()
        for block in sweep.blocks():
            weight = weights[block.side]
            logits = sweep.logits(block).add_(bias)
            # softplus(-x) = softplus(x) - x: all pairs as mismatches, then the matches corrected.
            losses = F.softplus(logits).sum(1) - sweep.pairs(block, logits)
            sweep.set_losses(block, weight * losses)
            if any(needed):
                gradient = logits.sigmoid_()
                sweep.pairs(block, gradient).sub_(1)
                bias_gradient += weight * gradient.sum()
                sweep.add_gradient(block, gradient if weight == 1 else gradient.mul_(weight))
        loss, *gradients = sweep.result(per_sample=1 / sweep.samples)
        return loss, *gradients, bias_gradient.squeeze() * (ranks.world_size / sweep.samples)

    return WithGradients.apply(compute, queries, keys, scale, bias)


def _gradients_needed(*tensors: torch.Tensor) -> tuple[bool, ...]:
    return tuple(torch.is_grad_enabled() and tensor.requires_grad for tensor in tensors)
