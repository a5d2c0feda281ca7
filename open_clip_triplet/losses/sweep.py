"""A sweep over blocks of queries: logits in, gradients out, nothing of size N x N kept.

Legend: A sides of queries, B >= A sides of keys (positive member, negative members of a sample),
n samples on this rank, N over all ranks, D width. Query (a, i) belongs with key (a, i). Columns
are keys in side order: key (b, j) is column b * N + j.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch

from open_clip_triplet.losses.ranks import Ranks

#: rows of queries per block when the caller does not say: 512 measured best on a CPU, and keeps a
#: block within reach of its caches; a GPU wants larger products
CHUNK_SIZES = {"cpu": 512}
DEFAULT_CHUNK_SIZE = 2048


class Block(NamedTuple):
    """Queries ``start:stop`` of one side."""

    side: int
    start: int
    stop: int


class Sweep:
    """Queries [A, n, D] of this rank against the keys [B, n, D] of every rank.

    ``needed`` says which gradients are wanted: of queries, of keys, of the scale.
    """

    def __init__(self, queries, keys, scale, chunk_size: int | None, ranks: Ranks, needed):
        self.ranks, self.needed = ranks, needed
        self.needs_gradients = any(needed)
        self.needs_query_side = needed[0] or needed[2]
        self.sides, self.rows, self.width = queries.shape
        self.samples = self.rows * ranks.world_size
        default = CHUNK_SIZES.get(queries.device.type, DEFAULT_CHUNK_SIZE)
        self.chunk = min(chunk_size or default, self.rows)
        dtype = product_dtype(queries)
        #: statistics and gradients are summed in at least float32
        self.sums = torch.promote_types(dtype, torch.float32)
        self.scale = scale.to(self.sums)
        self.queries = queries.to(dtype)
        self.scaled = (queries.to(self.sums) * self.scale).to(dtype)
        self.keys = ranks.gather(keys.to(dtype)).flatten(0, 1)
        self.losses = self.empty(self.sides, self.rows)
        if self.needs_query_side:
            self.query_gradient = self.empty(self.sides, self.rows, self.width)
        if needed[1]:
            self.key_gradient = self.empty(*self.keys.shape).zero_()

        self._buffer = self.empty(self.chunk * len(self.keys))

    def restart(self) -> None:
        """Forget the gradients summed so far."""
        if self.needed[1]:
            self.key_gradient.zero_()

    def empty(self, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=self.sums, device=self.keys.device)

    def reach(self) -> float:
        """A bound on the size of every rank's scaled similarities. Waits for the device."""
        norms = [
            torch.linalg.vector_norm(rows, dim=-1, dtype=self.sums).amax() for rows in (self.scaled, self.keys)
        ]
        return float(self.ranks.largest(torch.stack(norms)).prod())

    def blocks(self, sides: Iterable[int] | None = None) -> Iterator[Block]:
        """Blocks of some sides of queries, by default of all."""
        for side in range(self.sides) if sides is None else sides:
            for start in range(0, self.rows, self.chunk):
                yield Block(side, start, min(start + self.chunk, self.rows))

    def logits(self, block: Block, columns: slice | None = None, out=None) -> torch.Tensor:
        """Scaled similarities [stop - start, columns] of a block, in ``out`` or scratch."""
        side, start, stop = block
        keys = self.keys if columns is None else self.keys[columns]
        out = self.buffer(block, columns) if out is None else out
        return product(self.scaled[side, start:stop], keys.t(), out)

    def buffer(self, block: Block, columns: slice | None = None) -> torch.Tensor:
        """Scratch [stop - start, columns], all columns by default; the same for every block."""
        width = len(self.keys) if columns is None else columns.stop - columns.start
        height = block.stop - block.start
        return self._buffer[: height * width].view(height, width)

    def room(self, sides: int, width: int, numbers: int) -> torch.Tensor:
        """Space [count, chunk, width] for the blocks of some sides, or as many as ``numbers`` allow."""
        blocks = sides * -(-self.rows // self.chunk)
        return self.empty(min(blocks, numbers // (self.chunk * width)), self.chunk, width)

    def columns(self, sides: Sequence[int]) -> slice:
        """The keys of neighbouring sides."""
        return slice(sides[0] * self.samples, (sides[-1] + 1) * self.samples)

    def first_pair(self, block: Block) -> int:
        """Column of the key that belongs with a block's first query."""
        return block.side * self.samples + self.ranks.rank * self.rows + block.start

    def pairs(self, block: Block, matrix: torch.Tensor, column: int = 0) -> torch.Tensor:
        """View [stop - start] of a block's entries that belong together; ``matrix`` begins at ``column``."""
        first = self.first_pair(block) - column
        return matrix[:, first : first + len(matrix)].diagonal()

    def own_keys(self, block: Block, values: torch.Tensor, column: int) -> torch.Tensor:
        """Those of ``values``, one for each key from ``column`` on, of the keys that belong to a block."""
        first = self.first_pair(block) - column
        return values[first : first + block.stop - block.start]

    def set_losses(self, block: Block, losses: torch.Tensor) -> None:
        """Record what a block's queries [stop - start] cost."""
        self.losses[block.side, block.start : block.stop] = losses

    def add_gradient(self, block: Block, gradient: torch.Tensor) -> None:
        """Take the gradient [stop - start, B * N] of the summed losses by a block's logits."""
        side, start, stop = block
        gradient = gradient.to(self.keys.dtype)
        if self.needs_query_side:
            product(gradient, self.keys, self.query_gradient[side, start:stop])
        if self.needed[1]:
            add_product(self.key_gradient, gradient.t(), self.queries[side, start:stop])

    def result(self, per_sample: float):
        """Loss of all ranks and the gradients for queries, keys and scale, where needed.

        ``per_sample`` multiplies the sum of ``losses``. Gradients are multiplied by world_size.
        """
        loss = self.ranks.sum_(self.losses.sum()) * per_sample
        average = self.ranks.world_size * per_sample
        queries = keys = scale = None
        if self.needs_query_side:
            scale = (self.query_gradient * self.queries).sum() * average
            queries = self.query_gradient.mul_(self.scale * average)
        if self.needed[1]:
            keys = self.key_gradient.mul_(self.scale * average)
            keys = self.ranks.sum_to_owners(keys.unflatten(0, (-1, self.samples)))
        return loss, queries, keys, scale


class WithGradients(torch.autograd.Function):
    """Autograd over a function that returns its value and its gradients together."""

    @staticmethod
    def forward(ctx, compute, *inputs):
        value, *gradients = compute(*inputs)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [tensor.dtype for tensor in inputs]
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        return None, *(
            None if gradient is None else (gradient * upstream).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes)
        )


def product_dtype(features: torch.Tensor) -> torch.dtype:
    """The type products are formed in: autocast's or the features' own; on a CPU never below float32.

    A bfloat16 product on a CPU would round logits near 100 to steps of 0.5.
    """
    device = features.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else features.dtype
    if device == "cpu" or features.dtype == torch.float64:
        return torch.promote_types(features.dtype, torch.float32)
    return dtype


def product(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """``out[:] = left @ right``. Half-precision operands give float32 where torch can (CUDA, 2.8)."""
    if left.dtype == out.dtype:
        return torch.mm(left, right, out=out)
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
