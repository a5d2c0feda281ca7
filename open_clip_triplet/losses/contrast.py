"""Softmax and sigmoid contrast between queries and keys: the engine of every loss.

Both form the similarity matrix block by block and return the gradients with the value. The softmax
over keys is known as soon as a block of queries has met all keys; the softmax over queries needs
the sums of whole columns, so a product over those columns precedes the sweep. In N x N products, for
TripletCLIP: 2 for the columns, 4 for the logits, 8 for the gradients, and up to 2 are saved by keeping
blocks of the first. The plain form takes 18.

Both softmaxes share one exponential of each logit, less a shift that is the same for all. A
Cauchy-Schwarz bound on the logits says what shift rules out overflow. Where a sum comes out so small
that underflow may have taken part of it, which takes logits far beyond those of unit features, the
sweep is repeated with an exponential for each softmax. Legend: see ``sweep``.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from open_clip_triplet.losses.ranks import Ranks
from open_clip_triplet.losses.sweep import Block, Sweep, WithGradients

#: numbers kept from the pass over columns, as a multiple of those in the keys: memory stays linear in N
KEPT_PER_KEY = 4
#: logarithm of the largest exponential formed: sums of 10^6 of them stay finite
LOG_LARGEST = {torch.float32: 70.0, torch.float64: 600.0}
#: logarithm of the least sum to which 10^6 exponentials lost to underflow add less than a rounding error
LOG_LEAST_SUM = {torch.float32: -57.0, torch.float64: -650.0}

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
        sides = range(sweep.sides)
        groups = [(side,) for side in sides] if own_side else [tuple(sides)]
        if not _shared_exponentials(sweep, groups, weights):
            sweep.restart()
            _separate_exponentials(sweep, groups, weights)
        return sweep.result(per_sample=0.5 / sweep.samples)

    return WithGradients.apply(compute, queries, keys, scale)


def _shared_exponentials(sweep: Sweep, groups: list[tuple[int, ...]], weights: tuple[float, ...]) -> bool:
    """Losses and gradients of all blocks; False if some sum was too small for them to be right.

    groups: sides whose queries the keys of the same sides are classified over.
    """
    reach = sweep.reach()
    shift = max(0.0, reach - LOG_LARGEST[sweep.sums]) if math.isfinite(reach) else 0.0
    least = []
    width = len(groups[0]) * sweep.samples
    room = sweep.room(len(groups[0]), width, KEPT_PER_KEY * sweep.keys.numel())
    factors = sweep.empty(sweep.chunk, width)
    for sides in groups:
        columns = sweep.columns(sides)
        pairs, sums = _meet_columns(sweep, sides, columns, shift, room)
        over_queries, by_column = sums.log(), _per_column(sweep, sides, weights) / sums
        least.append(sums.amin())
        for number, block in enumerate(sweep.blocks(sides)):
            kept = room[number] if number < len(room) else None
            own, others = _exponentials(sweep, block, columns, shift, kept)
            row_sums = own.sum(1)
            for part in others:
                row_sums += part.sum(1)
            least.append(row_sums.amin())
            weight = weights[block.side]
            own_keys = sweep.own_keys(block, over_queries, columns.start)
            sweep.set_losses(block, weight * (row_sums.log() + own_keys + 2 * (shift - pairs[number])))
            if sweep.needs_gradients:
                gradient, by_row = sweep.buffer(block), (weight / row_sums)[:, None]
                for part in others:
                    part.mul_(by_row)
                torch.add(by_row, by_column, out=factors[: len(by_row)])
                torch.mul(own, factors[: len(by_row)], out=gradient[:, columns])
                sweep.pairs(block, gradient).sub_(2 * weight)
                sweep.add_gradient(block, gradient)
    if reach + shift <= -LOG_LEAST_SUM[sweep.sums]:
        return True  # no exponential is that small; a device need not be waited for
    too_small = sweep.ranks.least(torch.stack(least).amin()) < math.exp(LOG_LEAST_SUM[sweep.sums])
    return not too_small.item()  # NaN is not: separate exponentials would not mend it


def _meet_columns(
    sweep: Sweep, sides: tuple[int, ...], columns: slice, shift: float, room: torch.Tensor
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The pass over the columns that are classified over the queries of ``sides``.

    Returns the logits of each block's pairs, and the sums [columns] of the exponentials of every rank's
    queries. The exponentials of the first blocks stay in ``room`` [count, rows, columns].
    """
    pairs, sums = [], sweep.empty(columns.stop - columns.start).zero_()
    for number, block in enumerate(sweep.blocks(sides)):
        out = room[number, : block.stop - block.start] if number < len(room) else None
        logits = sweep.logits(block, columns, out=out)
        pairs.append(sweep.pairs(block, logits, columns.start).clone())
        sums += _exponential(logits, shift).sum(0)
    return pairs, sweep.ranks.sum_(sums)


def _exponentials(
    sweep: Sweep, block: Block, columns: slice, shift: float, kept: torch.Tensor | None
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Those of a block's logits in ``columns``, formed unless ``kept``, and of the parts before and after."""
    buffer = sweep.buffer(block)

    def form(part: slice) -> torch.Tensor:
        return _exponential(sweep.logits(block, part, out=buffer[:, part]), shift)

    parts = slice(0, columns.start), slice(columns.stop, len(sweep.keys))
    others = [form(part) for part in parts if part.start < part.stop]
    return form(columns) if kept is None else kept[: len(buffer)], others


def _exponential(logits: torch.Tensor, shift: float) -> torch.Tensor:
    """exp(logits - shift), in place."""
    return (logits.sub_(shift) if shift else logits).exp_()


def _separate_exponentials(sweep: Sweep, groups: list[tuple[int, ...]], weights: tuple[float, ...]) -> None:
    """``_shared_exponentials`` for logits of any size, at more time: each softmax has its own maximum."""
    for sides in groups:
        columns = sweep.columns(sides)
        over_queries = sweep.empty(columns.stop - columns.start).fill_(-math.inf)
        for block in sweep.blocks(sides):
            torch.logaddexp(over_queries, sweep.logits(block, columns).logsumexp(0), out=over_queries)
        sweep.ranks.logsumexp_(over_queries)
        per_column = _per_column(sweep, sides, weights)
        for block in sweep.blocks(sides):
            weight, logits = weights[block.side], sweep.logits(block)
            over_keys, pairs = logits.logsumexp(1), sweep.pairs(block, logits)
            own_keys = sweep.own_keys(block, over_queries, columns.start)
            sweep.set_losses(block, weight * (over_keys + own_keys - 2 * pairs))
            if sweep.needs_gradients:
                by_queries = (logits[:, columns] - over_queries).exp_().mul_(per_column)
                gradient = logits.softmax(1).mul_(weight)
                gradient[:, columns] += by_queries
                sweep.pairs(block, gradient).sub_(2 * weight)
                sweep.add_gradient(block, gradient)


def _per_column(sweep: Sweep, sides: tuple[int, ...], weights: tuple[float, ...]) -> torch.Tensor:
    """The weight of each key of ``sides``."""
    return sweep.losses.new_tensor([weights[side] for side in sides]).repeat_interleave(sweep.samples)


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
            if sweep.needs_gradients:
                gradient = logits.sigmoid_()
                sweep.pairs(block, gradient).sub_(1)
                bias_gradient += weight * gradient.sum()
                sweep.add_gradient(block, gradient if weight == 1 else gradient.mul_(weight))
        loss, *gradients = sweep.result(per_sample=1 / sweep.samples)
        return loss, *gradients, bias_gradient.squeeze() * (ranks.world_size / sweep.samples)

    return WithGradients.apply(compute, queries, keys, scale, bias)


def _gradients_needed(*tensors: torch.Tensor) -> tuple[bool, ...]:
    return tuple(torch.is_grad_enabled() and tensor.requires_grad for tensor in tensors)
