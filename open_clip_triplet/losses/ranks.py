"""What the ranks tell each other: keys once, statistics of columns, gradients of the keys.

Every rank holds the logits of its own queries against everybody's keys (the captions, or the images of
NegImage), and never those of another's queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


@dataclass(frozen=True)
class Ranks:
    """Position of this process among ``world_size`` equals. The default is a process alone."""

    rank: int = 0
    world_size: int = 1

    @classmethod
    def from_process_group(cls) -> Ranks:
        """Those of torch.distributed's default group; a single process where there is none."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return SINGLE_PROCESS

    def require_equal_rows(self, rows: Tensor) -> None:
        """Every rank must bring as many rows [n, D]. Waits for the device.

        Raises:
            ValueError: on every rank alike; names the smallest and the largest number.
        """
        if self.world_size == 1:
            return
        most, least = self.all_reduce_max(torch.tensor([len(rows), -len(rows)], device=rows.device)).tolist()
        if most != -least:
            raise ValueError(
                f"ranks bring different numbers of rows to the loss: {-least} to {most}, rank {self.rank} has "
                f"{len(rows)}. Every rank needs the same batch size; drop the last, shorter batch (drop_last)."
            )

    def gather(self, rows: Tensor) -> Tensor:
        """``all_gather``, differentiable: all ranks' gradients of a row are summed up for its owner."""
        gathered: Tensor = _Gather.apply(rows, self) if self.world_size > 1 else rows
        return gathered

    def all_gather(self, rows: Tensor) -> Tensor:
        """[B, n, ...] of every rank -> [B, world_size * n, ...] in rank order, on every rank."""
        if self.world_size == 1:
            return rows
        rows, gathered = rows.contiguous(), rows.new_empty(len(rows), self.world_size * rows.shape[1], *rows.shape[2:])
        for own, everybodys in zip(rows, gathered):
            dist.all_gather_into_tensor(everybodys, own)
        return gathered

    def own(self, values: Tensor, like: Tensor) -> Tensor:
        """[B * N] of all ranks' rows -> [B, n] of this rank's."""
        n = like.shape[1]
        return values.view(len(like), -1)[:, self.rank * n : (self.rank + 1) * n]

    def all_reduce_max(self, values: Tensor) -> Tensor:
        """Maximum over the ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values, dist.ReduceOp.MAX)
        return values

    def all_reduce_sum(self, share: Tensor) -> Tensor:
        """Sum over the ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(share)
        return share

    def sum(self, share: Tensor) -> Tensor:
        """Sum over the ranks, differentiable, the same on every rank.

        The gradient of this rank's share comes multiplied by ``world_size``, so that the average over
        ranks that DDP and FSDP take of parameter gradients is the gradient of the whole batch.
        """
        total: Tensor = _Sum.apply(share, self)
        return total

    def mean(self, per_sample: Tensor) -> Tensor:
        """[..., n] of every rank -> the mean [...] over all ranks' samples; gradients as in ``sum``."""
        return self.sum(per_sample.mean(-1)) / self.world_size


SINGLE_PROCESS = Ranks()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, ranks: Ranks) -> Tensor:
        ctx.n = rows.shape[1]
        return ranks.all_gather(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        own = gradient.new_empty(len(gradient), ctx.n, *gradient.shape[2:])
        for mine, everybodys in zip(own, gradient.contiguous()):
            dist.reduce_scatter_tensor(mine, everybodys)
        return own, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, share: Tensor, ranks: Ranks) -> Tensor:
        ctx.world_size = ranks.world_size
        return ranks.all_reduce_sum(share.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.world_size, None
