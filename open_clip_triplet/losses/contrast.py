"""The engine of the losses: cross-entropies over a matrix of logits that is never held whole.

Legend: A polarities of queries (positive, negative), B >= A of keys, n samples on this rank, N over all
ranks, D width. Query (a, i) belongs with key (a, i); keys of polarity A and up only fill denominators.
Key (b, j) is column b * N + j of the logits. A rank forms the rows of its own queries, block by block, and
forms them again in the backward pass. Results are per sample, so ``functional`` combines them by ordinary
autograd. Gradients are exact; second derivatives are not available.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from open_clip_triplet.losses.ranks import SINGLE_PROCESS, Ranks


def softmax_contrast(
    queries: Tensor, keys: Tensor, scale: Tensor | float, *, same_polarity: bool = True, chunk_size: int | None = None,
    ranks: Ranks = SINGLE_PROCESS,
) -> tuple[Tensor, Tensor]:
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
    with torch.autocast(queries.device.type, enabled=False):
        queries, keys = scaled(queries, scale), ranks.gather(wide(keys))
        by_query, by_key = _SoftmaxContrast.apply(queries, keys, same_polarity, chunk_size, ranks)
    return by_query, by_key


class _SoftmaxContrast(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, same_polarity: bool, chunk_size: int | None, ranks: Ranks
    ) -> tuple[Tensor, Tensor]:
        by_query, pairs = queries.new_empty(2, *queries.shape[:2])
        column_max = keys.new_full((len(queries) * keys.shape[1],), -math.inf)
        column_sum = torch.zeros_like(column_max)
        for index in _blocks(queries, keys, chunk_size):
            logits, own, columns = _logits(queries, keys, index, same_polarity, ranks)
            most = torch.maximum(column_max[columns], logits[:, columns].amax(0))
            column_sum[columns] *= (column_max[columns] - most).exp_()
            column_sum[columns] += (logits[:, columns] - most).exp_().sum(0)
            column_max[columns] = most
            pairs[index] = logits[:, own].diagonal()
            by_query[index] = logits.sub_(pairs[index][:, None]).logsumexp(1)
        most = ranks.all_reduce_max(column_max.clone())
        column_sum = ranks.all_reduce_sum(column_sum.mul_((column_max - most).exp_()))
        by_key = ranks.own(column_sum, pairs).log() + (ranks.own(most, pairs) - pairs)
        ctx.save_for_backward(queries, keys, most, column_sum)
        ctx.options = same_polarity, chunk_size, ranks
        return by_query, by_key

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_query: Tensor, by_key: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        queries, keys, column_max, column_sum = ctx.saved_tensors
        same_polarity, chunk_size, ranks = ctx.options
        by_column = ranks.all_gather(by_key).flatten() / column_sum
        query_gradient, key_gradient = torch.empty_like(queries), torch.zeros_like(keys.flatten(0, 1))
        with torch.autocast(keys.device.type, enabled=False):
            for index in _blocks(queries, keys, chunk_size):
                logits, own, columns = _logits(queries, keys, index, same_polarity, ranks)
                over_queries = (logits[:, columns] - column_max[columns]).exp_().mul_(by_column[columns])
                gradient = logits.softmax(1).mul_(by_query[index][:, None])
                gradient[:, columns] += over_queries
                gradient[:, own].diagonal().sub_(by_query[index] + by_key[index])
                torch.mm(gradient, keys.flatten(0, 1), out=query_gradient[index])
                key_gradient.addmm_(gradient.T, queries[index])
        return query_gradient, key_gradient.view_as(keys), None, None, None


def sigmoid_contrast(
    queries: Tensor, keys: Tensor, scale: Tensor | float, bias: Tensor, *, chunk_size: int | None = None,
    ranks: Ranks = SINGLE_PROCESS,
) -> Tensor:
    """SigLIP over the same matrix: every query meets every key, and its own key is the one match.

    Args: as ``softmax_contrast``; ``bias`` is a scalar added to the logits.

    Returns:
        [A, n]: for each of this rank's queries, the sum over all keys of
        -log sigmoid(z * (scale * similarity + bias)), z = 1 for its own key and -1 otherwise.

    Reference: Zhai et al., ICCV 2023, arXiv:2303.15343.

    Reference: Zhai et al., ICCV 2023, arXiv:2303.15343.
    """
    with torch.autocast(queries.device.type, enabled=False):
        queries, keys = scaled(queries, scale), ranks.gather(wide(keys))

        def loss_of_block(index: tuple[int, slice], queries: Tensor, keys: Tensor, bias: Tensor) -> Tensor:
            logits, own, _ = _logits(queries, keys, index, True, ranks)
            # softplus(-z) = softplus(z) - z: all pairs as mismatches, then the matches corrected
            return F.softplus(logits + bias).sum(1) - (logits[:, own].diagonal() + bias)

        sums: list[Tensor] = [
            checkpoint(loss_of_block, index, queries, keys, bias, use_reentrant=False, preserve_rng_state=False)
            for index in _blocks(queries, keys, chunk_size)
        ]
    return torch.cat(sums).view(queries.shape[:2])


def _blocks(queries: Tensor, keys: Tensor, rows: int | None) -> list[tuple[int, slice]]:
    """Indices in [A, n] of the blocks, each of so many rows; None is automatic."""
    n = queries.shape[1]
    # 16 MB measured best on a CPU, a GPU wants more
    rows = rows or max(1, (2**22 if keys.device.type == "cpu" else 2**26) // keys[..., 0].numel())
    return [(polarity, slice(i, min(i + rows, n))) for polarity in range(len(queries)) for i in range(0, n, rows)]


def _logits(
    queries: Tensor, keys: Tensor, index: tuple[int, slice], same_polarity: bool, ranks: Ranks
) -> tuple[Tensor, slice, slice]:
    """A block of the rows of queries [A, n, D] @ keys [B, N, D].

    Returns its logits [rows, B * N]; the columns whose diagonal is at each query's own key; and the columns of
    the keys that are classified over it.
    """
    (polarity, rows), samples = index, keys.shape[1]
    first = polarity * samples
    start = first + ranks.rank * queries.shape[1]
    own = slice(start + rows.start, start + rows.stop)
    columns = slice(first, first + samples) if same_polarity else slice(len(queries) * samples)
    return queries[index] @ keys.flatten(0, 1).T, own, columns


def wide(rows: Tensor) -> Tensor:
    """At least float32: half-precision logits near 100 come in steps of 0.06 to 0.5."""
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def scaled(rows: Tensor, scale: Tensor | float) -> Tensor:
    """Rows times a scale, which may be of another type or lie elsewhere; at least float32."""
    rows = wide(rows)
    return rows * torch.as_tensor(scale, dtype=rows.dtype, device=rows.device)
