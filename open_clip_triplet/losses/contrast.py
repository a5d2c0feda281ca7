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

#: bytes of column blocks kept for the sweep, as a multiple of the bytes of the keys
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
        columns = _Columns(sweep, weights, own_side)
        for block in sweep.blocks():
            weight = weights[block.side]
            logits, softmax = columns.logits(block), sweep.buffer(1, block)
            pairs = sweep.pairs(block, logits).clone()
            largest = logits.amax(1)
            torch.softmax(logits, 1, out=softmax)
            # The largest probability is at least 1 / (B * N), so its logarithm is finite.
            over_keys = largest - softmax.amax(1).log_()
            sweep.set_losses(block, weight * (over_keys + columns.of_pairs(block) - 2 * pairs))
            if any(needed):
                columns.add_softmax(block, logits, softmax, math.log(weight))
                sweep.pairs(block, softmax).sub_(2)
                sweep.add_gradient(block, softmax if weight == 1 else softmax.mul_(weight))
        return sweep.result(per_sample=0.5 / sweep.samples)

    return WithGradients.apply(compute, queries, keys, scale)


class _Columns:
    """Log-sum-exp over the queries of each column that is a pair's key, and the blocks kept of it.

    ``logsumexp``: [A * N], side by side, over the queries of every rank.
    """

    def __init__(self, sweep: Sweep, weights: tuple[float, ...], own_side: bool):
        self.sweep, self.own_side = sweep, own_side
        self.logsumexp = sweep.empty(sweep.sides * sweep.samples).fill_(-math.inf)
        self.kept: dict[Block, torch.Tensor] = {}
        budget = KEPT_PER_KEY * sweep.keys.numel()
        for block in sweep.blocks():
            own = self.slice(block)
            shape = (block.stop - block.start, own.stop - own.start)
            budget -= math.prod(shape)
            logits = sweep.buffer(0, block, own)
            if budget >= 0:
                logits = self.kept[block] = torch.empty_like(logits)
            sweep.logits(block, own, logits)
            over_queries = _logsumexp_over_rows(logits, sweep.buffer(1, block, own))
            torch.logaddexp(self.logsumexp[own], over_queries, out=self.logsumexp[own])
        sweep.ranks.logsumexp_(self.logsumexp)
        log_weights = sweep.losses.new_tensor(weights).log().repeat_interleave(sweep.samples)
        self._weighted = self.logsumexp - log_weights

    def slice(self, block: Block) -> slice:
        """The columns that are classified over a block's queries."""
        first, count = (block.side, 1) if self.own_side else (0, self.sweep.sides)
        return slice(first * self.sweep.samples, (first + count) * self.sweep.samples)

    def logits(self, block: Block) -> torch.Tensor:
        """Logits [stop - start, B * N] of a block."""
        logits = self.sweep.buffer(0, block)
        if block not in self.kept:
            return self.sweep.logits(block, slice(0, len(self.sweep.keys)), logits)
        own = self.slice(block)
        logits[:, own] = self.kept.pop(block)
        for rest in (slice(0, own.start), slice(own.stop, len(self.sweep.keys))):
            if rest.start < rest.stop:
                self.sweep.logits(block, rest, logits[:, rest])
        return logits

    def of_pairs(self, block: Block) -> torch.Tensor:
        """Log-sum-exp [stop - start] of the keys that belong with a block's queries."""
        first = self.sweep.first_pair(block)
        return self.logsumexp[first : first + block.stop - block.start]

    def add_softmax(self, block: Block, logits, total, log_weight: float) -> None:
        """Add the softmax over queries to ``total``, relative to the side's weight; overwrites ``logits``."""
        own = self.slice(block)
        total[:, own] += logits[:, own].sub_(self._weighted[own] + log_weight).exp_()


def _logsumexp_over_rows(logits: torch.Tensor, scratch: torch.Tensor) -> torch.Tensor:
    largest = logits.amax(0)
    return torch.sub(logits, largest, out=scratch).exp_().sum(0).log_().add_(largest)


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
            logits = sweep.logits(block, slice(0, len(sweep.keys)), sweep.buffer(0, block)).add_(bias)
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
