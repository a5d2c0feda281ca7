"""What the ranks tell each other: captions once, column statistics, gradients of the captions.

Every rank keeps the logits of its own queries. Keys (the captions, or the images of ``negimage``)
are gathered once, their gradients are summed back to their owners, and one sum per column and a few
scalars are agreed upon. No rank ever holds the logits of another's queries.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import distributed as dist


@dataclass(frozen=True)
class Ranks:
    """Position of this process among ``world_size`` equals. The default is a process alone."""

    rank: int = 0
    world_size: int = 1

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """[B, n, D] of every rank -> [B, world_size * n, D] in rank order, on every rank."""
        rows = rows.contiguous()
        if self.world_size == 1:
            return rows
        sides, n, width = rows.shape
        gathered = rows.new_empty(sides, self.world_size * n, width)
        for side in range(sides):
            dist.all_gather_into_tensor(gathered[side], rows[side])
        return gathered

    def sum_to_owners(self, gathered: torch.Tensor) -> torch.Tensor:
        """The transpose of ``gather``: [B, world_size * n, D] -> this rank's [B, n, D], summed over ranks."""
        if self.world_size == 1:
            return gathered
        sides, rows, width = gathered.shape
        own = gathered.new_empty(sides, rows // self.world_size, width)
        for side in range(sides):
            dist.reduce_scatter_tensor(own[side], gathered[side])
        return own

    def largest(self, values: torch.Tensor) -> torch.Tensor:
        """Maximum over the ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values, dist.ReduceOp.MAX)
        return values

    def least(self, values: torch.Tensor) -> torch.Tensor:
        """Minimum over the ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values, dist.ReduceOp.MIN)
        return values

    def logsumexp_(self, partial: torch.Tensor) -> torch.Tensor:
        """Each rank's log-sum-exp over its queries -> the one over everybody's, in place."""
        if self.world_size > 1:
            largest = self.largest(partial.clone())
            partial.sub_(largest).exp_()
            dist.all_reduce(partial)
            partial.log_().add_(largest)
        return partial

    def sum_(self, share: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(share)
        return share
