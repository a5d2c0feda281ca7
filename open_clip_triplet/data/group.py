"""What the ranks of a run exchange about their data, on CPU: no step waits for a GPU because of it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


class HostGroup:
    """Collectives of all ranks; without a process group, of this process alone. Every rank makes one at once."""

    def __init__(self) -> None:
        self._group: Any = None
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self._group = dist.new_group(backend="gloo")
        self._vote: tuple | None = None

    def gather(self, value) -> list:
        """The (picklable) values of all ranks, in rank order, on every rank."""
        if self._group is None:
            return [value]
        values: list = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(values, value, group=self._group)
        return values

    def agreed(self, wish: bool) -> bool:
        """True on all ranks alike once one of them has wished it; a call later, so that nobody waits."""
        if self._group is None:
            return wish
        before, flag = self._vote, torch.tensor([int(wish)])
        if before is not None:
            before[1].wait()
        self._vote = flag, dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        return before is not None and bool(before[0])
