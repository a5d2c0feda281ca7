"""The engine of the losses: cross-entropies over a matrix of logits that is never held whole.

Legend: A polarities of queries (positive, negative), B >= A of keys, n samples on this rank, N over
all ranks, D width. Query (a, i) belongs with key (a, i); keys of polarity A and up only fill
denominators. Key (b, j) is column b * N + j of the logits.

A block of rows is formed, reduced to a log-sum-exp per row and a maximum and sum per column, and
dropped; the backward pass forms it again. Results are per sample, so ``functional`` combines them by
ordinary autograd. Gradients are exact; second derivatives are not available.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from open_clip_triplet.losses.ranks import SINGLE_PROCESS, Ranks

#: logits in a block where the caller does not say how many rows. On a CPU blocks of 16 MB measured best
#: (larger ones are mapped anew by the allocator each time); a GPU wants larger products.
LOGITS_PER_BLOCK = {"cpu": 2**22}
DEFAULT_LOGITS_PER_BLOCK = 2**26


def softmax_contrast(
    queries: torch.Tensor,
    keys: torch.Tensor,
    scale: torch.Tensor,
    *,
    same_polarity: bool = True,
    chunk_size: int | None = None,
    ranks: Ranks = SINGLE_PROCESS,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of each query over all B * N keys, and of each paired key over the queries.

    Args:
        queries: [A, n, D], this rank's.
        keys: [B, n, D], this rank's, B >= A.
        scale: scalar that multiplies the similarities.
        same_polarity: key (a, i) is classified over the N queries of polarity a, else over all A * N.
        chunk_size: rows of queries per block; None is automatic.
        ranks: where the other samples are.

    Returns:
        by_query, by_key: [A, n] each, in nats, for this rank's queries and keys. ``ranks.mean`` reduces
        them with the gradient that all ranks' losses have for this rank's rows.
    """
    by_query, by_key = _SoftmaxContrast.apply(queries, keys, scale, same_polarity, chunk_size, ranks)
    return by_query, by_key


class _SoftmaxContrast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries, keys, scale, same_polarity, chunk_size, ranks):  # type: ignore[no-untyped-def]
        logits = BlockwiseLogits(queries, gather_keys(keys, ranks), scale, chunk_size, ranks)
        by_query, pair_logits = logits.empty(*queries.shape[:2]), logits.empty(*queries.shape[:2])
        column_max = logits.empty(len(queries) * logits.samples).fill_(-math.inf)
        column_sum = torch.zeros_like(column_max)
        for block in logits.blocks():
            block_logits, columns = logits(block), logits.columns(block, same_polarity)
            own = block_logits[:, columns]
            largest = torch.maximum(column_max[columns], own.amax(0))
            column_sum[columns] *= (column_max[columns] - largest).exp_()
            column_sum[columns] += (own - largest).exp_().sum(0)
            column_max[columns] = largest
            pair_logits[block.rows] = pairs = logits.pairs(block, block_logits).clone()
            by_query[block.rows] = block_logits.sub_(pairs[:, None]).logsumexp(1)
        largest = ranks.all_reduce_max(column_max.clone())
        column_sum = ranks.all_reduce_sum(column_sum.mul_((column_max - largest).exp_()))
        by_key = logits.own_columns(column_sum).log() + (logits.own_columns(largest) - pair_logits)
        ctx.save_for_backward(queries, logits.keys, scale, largest, column_sum)
        ctx.options = same_polarity, chunk_size, ranks
        return by_query, by_key

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_query, by_key):  # type: ignore[no-untyped-def]
        queries, keys, scale, column_max, column_sum = ctx.saved_tensors
        same_polarity, chunk_size, ranks = ctx.options
        logits = BlockwiseLogits(queries, keys, scale, chunk_size, ranks, ctx.needs_input_grad)
        by_column = ranks.all_gather(by_key).flatten() / column_sum
        for block in logits.blocks():
            block_logits, columns = logits(block), logits.columns(block, same_polarity)
            over_queries = (block_logits[:, columns] - column_max[columns]).exp_().mul_(by_column[columns])
            gradient = block_logits.softmax(1).mul_(by_query[block.rows][:, None])
            gradient[:, columns] += over_queries
            logits.pairs(block, gradient).sub_(by_query[block.rows] + by_key[block.rows])
            logits.add_gradient(block, gradient)
        return *logits.gradients(), None, None, None


class Block(NamedTuple):
    """Queries ``start:stop`` of one polarity."""

    polarity: int
    start: int
    stop: int

    @property
    def rows(self) -> tuple[int, slice]:
        """Index of these queries in a tensor [A, n, ...]."""
        return self.polarity, slice(self.start, self.stop)


class BlockwiseLogits:
    """Scaled similarities of this rank's queries [A, n, D] and everybody's keys [B * N, D], in blocks.

    ``needs_grad`` says which gradients are summed up: of queries, of keys, of the scale.
    """

    def __init__(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        scale: torch.Tensor,
        chunk_size: int | None,
        ranks: Ranks,
        needs_grad: tuple[bool, ...] = (False, False, False),
    ):
        self.ranks, self.needs_grad = ranks, needs_grad
        self.rows = queries.shape[1]
        self.samples = self.rows * ranks.world_size
        per_block = LOGITS_PER_BLOCK.get(queries.device.type, DEFAULT_LOGITS_PER_BLOCK)
        self.chunk = min(chunk_size or max(1, per_block // len(keys)), self.rows)
        #: statistics and gradients are summed in at least float32
        self.sums = torch.promote_types(keys.dtype, torch.float32)
        self.scale, self.keys = scale.to(self.sums), keys
        self.queries = queries.to(keys.dtype)
        self.scaled = (queries.to(self.sums) * self.scale).to(keys.dtype)
        if needs_grad[0] or needs_grad[2]:
            self.query_gradient = self.empty(*queries.shape)
        if needs_grad[1]:
            self.key_gradient = self.empty(*keys.shape).zero_()

    def empty(self, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=self.sums, device=self.keys.device)

    def blocks(self) -> Iterator[Block]:
        for polarity in range(len(self.queries)):
            for start in range(0, self.rows, self.chunk):
                yield Block(polarity, start, min(start + self.chunk, self.rows))

    def __call__(self, block: Block) -> torch.Tensor:
        """Logits [stop - start, B * N] of a block's queries."""
        queries = self.scaled[block.rows]
        return product(queries, self.keys.t(), self.empty(len(queries), len(self.keys)))

    def columns(self, block: Block, same_polarity: bool) -> slice:
        """The keys that are classified over a block's queries: those of its polarity, or all paired ones."""
        if same_polarity:
            return slice(block.polarity * self.samples, (block.polarity + 1) * self.samples)
        return slice(0, len(self.queries) * self.samples)

    def pairs(self, block: Block, matrix: torch.Tensor) -> torch.Tensor:
        """View [stop - start] of a block's entries at each query's own key."""
        first = block.polarity * self.samples + self.ranks.rank * self.rows + block.start
        return matrix[:, first : first + len(matrix)].diagonal()

    def own_columns(self, values: torch.Tensor) -> torch.Tensor:
        """[A * N] of all paired keys -> [A, n] of this rank's."""
        first = self.ranks.rank * self.rows
        return values.view(-1, self.samples)[:, first : first + self.rows]

    def add_gradient(self, block: Block, gradient: torch.Tensor) -> None:
        """Take the gradient [stop - start, B * N] of a block's logits."""
        gradient = gradient.to(self.keys.dtype)
        if self.needs_grad[0] or self.needs_grad[2]:
            product(gradient, self.keys, self.query_gradient[block.rows])
        if self.needs_grad[1]:
            add_product(self.key_gradient, gradient.t(), self.queries[block.rows])

    def gradients(self) -> tuple[torch.Tensor | None, ...]:
        """Those of this rank's queries and keys and of the scale; None if not needed."""
        queries = keys = scale = None
        if self.needs_grad[2]:
            scale = (self.query_gradient * self.queries).sum()
        if self.needs_grad[0]:
            queries = self.query_gradient.mul_(self.scale)
        if self.needs_grad[1]:
            everybodys = self.key_gradient.mul_(self.scale).view(-1, self.samples, self.keys.shape[1])
            keys = self.ranks.reduce_scatter(everybodys)
        return queries, keys, scale


def gather_keys(keys: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """[B, n, D] of every rank -> [B * N, D], in the type that products are formed in.

    bfloat16, by features or autocast, on an accelerator; else at least float32. A bfloat16 product on a
    CPU would round logits near 100 to steps of 0.5, and float16 gradients of a large batch underflow.
    """
    device = keys.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else keys.dtype
    if device == "cpu" or dtype != torch.bfloat16 or keys.dtype == torch.float64:
        dtype = torch.promote_types(keys.dtype, torch.float32)
    return ranks.all_gather(keys.to(dtype)).flatten(0, 1)


def product(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """``out[:] = left @ right``. Half-precision operands give float32 where torch can (CUDA, 2.8)."""
    if left.dtype == out.dtype:
        return torch.mm(left, right, out=out)  # an operation with ``out`` is not touched by autocast
    return out.copy_(_widened(left, right))


def add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """``total += left @ right``, summed in the type of ``total``."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += _widened(left, right)


def _widened(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    if left.is_cuda and hasattr(torch.ops.aten.mm, "dtype"):
        return torch.mm(left, right, out_dtype=torch.float32)
    return left @ right
