"""Softmax and sigmoid contrast between queries and keys: the engine of every loss.

Both form the similarity matrix block by block and return the gradients with the value. The softmax
over keys is known as soon as a block of queries has met all keys; the softmax over queries needs
the sums of whole columns, so a product over those columns precedes the sweep. In N x N products, for
TripletCLIP: 2 for the columns, 4 for the logits, 8 for the gradients, and up to 2 are saved by keeping
blocks of the first. The plain form takes 18.

Both softmaxes share one exponential of each logit, less a shift that is the same for all. A
Cauchy-Schwarz bound on the logits says what shift rules out overflow; a sum that came out so small
that underflow may have taken part of it is the sign to begin again in float64. Legend: see ``sweep``.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from open_clip_triplet.losses.ranks import Ranks
from open_clip_triplet.losses.sweep import Block, Sweep, WithGradients

#: numbers kept from the pass over columns, as a multiple of those in the keys: memory stays linear in N
KEPT_PER_KEY = 4
#: logarithms of the largest exponential formed, so that sums over 10^6 of them stay finite, and of the
#: least sum to which those lost to underflow could not have added a rounding error
LARGEST = {torch.float32: 70.0, torch.float64: 600.0}
LEAST_SUM = {torch.float32: -57.0, torch.float64: -650.0}

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
        dtype = sweep.sums
        if not _softmax_sweep(sweep, weights, own_side):
            sweep = Sweep(queries.double(), keys.double(), scale, chunk_size, ranks, needed)
            _softmax_sweep(sweep, weights, own_side)
        loss, *gradients = sweep.result(per_sample=0.5 / sweep.samples)
        return loss.to(dtype), *gradients

    return WithGradients.apply(compute, queries, keys, scale)


def _softmax_sweep(sweep: Sweep, weights: tuple[float, ...], own_side: bool) -> bool:
    """Losses and gradients of all blocks; whether the sums were large enough for the type."""
    reach = sweep.reach()
    shift = max(0.0, reach - LARGEST[sweep.sums]) if math.isfinite(reach) else 0.0
    least = []
    every = range(sweep.sides)
    for sides in [(side,) for side in every] if own_side else [tuple(every)]:
        # The keys that are classified over the queries of these sides.
        columns = slice(sides[0] * sweep.samples, (sides[-1] + 1) * sweep.samples)
        pairs, sums, kept = _meet_columns(sweep, sides, columns, shift)
        side_weights = sums.new_tensor([weights[side] for side in sides])
        over_queries, by_column = sums.log(), side_weights.repeat_interleave(sweep.samples) / sums
        factors = sweep.empty(sweep.chunk, len(sums)) if any(sweep.needed) else None
        least.append(sums.amin())
        for number, block in enumerate(sweep.blocks(sides)):
            own, others = _exponentials(sweep, block, columns, shift, kept[number : number + 1])
            row_sums = own.sum(1)
            for part in others:
                row_sums += part.sum(1)
            least.append(row_sums.amin())
            own_keys = over_queries[sweep.first_pair(block) - columns.start :][: len(row_sums)]
            weight = weights[block.side]
            sweep.set_losses(block, weight * (row_sums.log() + own_keys + 2 * (shift - pairs[number])))
            if any(sweep.needed):
                by_row = (weight / row_sums)[:, None]
                gradient = sweep.buffer(block)
                for part in others:
                    part.mul_(by_row)
                own_factors = torch.add(by_row, by_column, out=factors[: len(by_row)])
                torch.mul(own, own_factors, out=gradient[:, columns])
                sweep.pairs(block, gradient).sub_(2 * weight)
                sweep.add_gradient(block, gradient)
    # Not "at least": NaN is nothing that float64 would mend.
    return not float(sweep.ranks.least(torch.stack(least).amin())) < math.exp(LEAST_SUM[sweep.sums])


def _meet_columns(sweep: Sweep, sides: tuple[int, ...], columns: slice, shift: float):
    """The pass over the columns that are classified over the queries of ``sides``.

    Returns:
        The logits of each block's pairs, the sums [columns] of the exponentials of every rank's
        queries, and the exponentials [count, rows, columns] of the first blocks.
    """
    pairs, sums = [], sweep.empty(columns.stop - columns.start).zero_()
    kept = sweep.kept(columns, KEPT_PER_KEY * sweep.keys.numel())
    for number, block in enumerate(sweep.blocks(sides)):
        out = kept[number, : block.stop - block.start] if number < len(kept) else None
        logits = sweep.logits(block, columns, out=out)
        pairs.append(sweep.pairs(block, logits, columns.start).clone())
        sums += _exponential(logits, shift).sum(0)
    return pairs, sweep.ranks.sum_(sums), kept


def _exponentials(sweep: Sweep, block: Block, columns: slice, shift: float, kept: torch.Tensor):
    """Of a block's logits in ``columns``, where not ``kept``, and in the parts before and after them."""
    buffer = sweep.buffer(block)

    def form(part):
        return _exponential(sweep.logits(block, part, out=buffer[:, part]), shift)

    parts = slice(0, columns.start), slice(columns.stop, len(sweep.keys))
    others = [form(part) for part in parts if part.start < part.stop]
    return kept[0, : len(buffer)] if len(kept) else form(columns), others


def _exponential(logits: torch.Tensor, shift: float) -> torch.Tensor:
    """In place."""
    return (logits.sub_(shift) if shift else logits).exp_()


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
