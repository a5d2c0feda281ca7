"""What an epoch contains: which samples of which shards each worker of each rank reads, in which order.

With known shard sizes an epoch is exact. The shards are shuffled by (seed, epoch), laid end to end,
and cut into one contiguous slice per worker, of exactly the batches that worker has to make; a shard
on a cut is opened by two workers, each passing over the other's part. So every sample is seen once,
up to the last global batch, whatever the number of ranks, workers and shards. Everything here is a
pure function of the configuration and the epoch: nothing has to be saved to resume.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, count

#: OpenCLIP's sizes, in samples: the buffer starts small, so that the first batch is not kept waiting
SHUFFLE_SAMPLES = 5000
SHUFFLE_INITIAL = 500
#: encoded bytes the shuffle buffer of one worker may hold, by the mean sample size of the first shard
SHUFFLE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Part:
    """Samples ``first`` to ``last`` of one shard; ``last`` is None where the shard's size is unknown.

    ``visit`` tells the readings of one sample within an epoch apart, so that each is augmented anew.
    """

    url: str
    first: int = 0
    last: int | None = None
    size: int | None = None
    visit: str = ""


@dataclass(frozen=True)
class EpochPlan:
    """The division of every epoch among ranks and workers. Counts are samples unless named otherwise.

    batches: per rank and epoch. workers: at least 1. sizes: samples per shard, or None where any is
    unknown. weights: one per shard, for resampling with replacement.
    """

    urls: tuple[str, ...]
    sizes: tuple[int, ...] | None
    batch_size: int
    batches: int
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    workers: int = 1
    resampled: bool = False
    weights: tuple[float, ...] | None = None

    @property
    def exact(self) -> bool:
        """True where every sample is seen once per epoch, up to the last global batch."""
        return self.sizes is not None and not self.resampled

    @property
    def used(self) -> int:
        """Samples per epoch over all ranks."""
        return self.batches * self.batch_size * self.world_size

    def slot_length(self, worker: int) -> int:
        """Samples that ``worker`` batches in one epoch; the loader takes batches from workers in turn."""
        return len(range(worker, self.batches, self.workers)) * self.batch_size

    def parts(self, epoch: int, worker: int) -> Iterator[Part]:
        """What one worker of this rank reads in an epoch. Endless unless the plan is exact."""
        if self.exact:
            return self._slice(epoch, worker)
        slot = self.rank * self.workers + worker
        if self.resampled:
            return self._draws(epoch, slot)
        return self._own_shards(epoch, slot)

    def _slice(self, epoch: int, worker: int) -> Iterator[Part]:
        before = sum(self.slot_length(other) for other in range(worker))
        start = self.rank * self.batches * self.batch_size + before
        stop = start + self.slot_length(worker)
        total = sum(self.sizes)
        for cycle in range(start // total, -(-stop // total)):
            order = self._shuffled(epoch, cycle)
            ends = list(accumulate(self.sizes[i] for i in order))
            low, high = max(start - cycle * total, 0), min(stop - cycle * total, total)
            for place in range(bisect_right(ends, low), len(order)):
                shard, end = order[place], ends[place]
                begin = end - self.sizes[shard]
                if begin >= high:
                    break
                if self.sizes[shard]:
                    yield self._part(shard, max(low - begin, 0), min(high, end) - begin, str(cycle or ""))

    def _draws(self, epoch: int, slot: int) -> Iterator[Part]:
        rng = random.Random(f"{self.seed}/{epoch}/draws/{slot}")
        for draw in count():
            (shard,) = rng.choices(range(len(self.urls)), weights=self.weights)
            yield self._part(shard, 0, self.sizes[shard] if self.sizes else None, f"{slot}.{draw}")

    def _own_shards(self, epoch: int, slot: int) -> Iterator[Part]:
        own = self._shuffled(epoch, 0)[slot :: self.world_size * self.workers]
        for cycle in count():
            for shard in own:
                yield self._part(shard, 0, None, str(cycle or ""))

    def _part(self, shard: int, first: int, last: int | None, visit: str) -> Part:
        return Part(self.urls[shard], first, last, self.sizes[shard] if self.sizes else None, visit)

    def _shuffled(self, epoch: int, cycle: int) -> list[int]:
        order = list(range(len(self.urls)))
        random.Random(f"{self.seed}/{epoch}/shards/{cycle}").shuffle(order)
        return order


class ShuffleOrder:
    """Positions 0, 1, 2, ... in the order in which a shuffle buffer gives them out.

    Only numbers are shuffled here, so the first samples of an epoch can be passed over without reading
    them: afterwards ``pending`` and everything from ``following`` on are what is still to come.

    >>> order = ShuffleOrder(6, buffer=3, seed="a")
    >>> sorted(order)
    [0, 1, 2, 3, 4, 5]
    """

    def __init__(self, length: int | None, buffer: int, seed: str, initial: int = SHUFFLE_INITIAL):
        self.length = length
        self.pending: list[int] = []
        self.following = 0
        self._buffer = buffer
        self._goal = min(buffer, initial)
        self._rng = random.Random(seed)

    def __iter__(self) -> ShuffleOrder:
        return self

    def __next__(self) -> int:
        while len(self.pending) < self._goal and (self.length is None or self.following < self.length):
            self.pending.append(self.following)
            self.following += 1
        if not self.pending:
            raise StopIteration
        self._goal = min(self._buffer, self._goal + 1)  # takes in two for one given out, until full
        place = int(self._rng.random() * len(self.pending))
        self.pending[place], self.pending[-1] = self.pending[-1], self.pending[place]
        return self.pending.pop()
