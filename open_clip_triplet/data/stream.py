"""The order of training samples: one endless stream, dealt to P data streams. Everything here is pure.

In each *pass* the shards are shuffled by (seed, pass) and laid end to end; the line is cut, from a random
sample on, into P slices of equal length, one for each *data stream*. A data stream gives its slice of pass 0
through a shuffle buffer, then its slice of pass 1, and so on. Every global batch takes its share of each
stream. So batches depend on data, seed, global batch and P; ranks and workers only share the streams out.

Where a stream stands is a :class:`Position`; nothing else has to be saved to continue it.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from math import gcd
from typing import NamedTuple

#: samples in the shuffle buffer of one stream at most, and of all streams together
SHUFFLE_SAMPLES, SHUFFLE_SAMPLES_IN_ALL = 5_000, 20_000
#: encoded bytes of the same, by the mean sample size of the first shard
SHUFFLE_BYTES, SHUFFLE_BYTES_IN_ALL = 256 * 2**20, 2**30
#: a buffer starts small, so that the first batch is not kept waiting (OpenCLIP's is 1,000)
SHUFFLE_INITIAL = 500


class Position(NamedTuple):
    """Where a data stream stands: the pass, and how many places of its shuffled slice have been drawn.

    length: samples of the slice; None where sizes are unknown and its end has not been met.
    """

    pass_index: int = 0
    drawn: int = 0
    length: int | None = None


@dataclass(frozen=True)
class ShardSlice:
    """Samples ``first`` to ``last`` of one shard; ``last`` is None where the shard's size is unknown.

    shard: its number in the list of urls. draw: tells the readings of one sample within a pass apart.
    """

    url: str
    shard: int = 0
    first: int = 0
    last: int | None = None
    size: int | None = None
    draw: str = ""


@dataclass(frozen=True)
class Dealing:
    """How many samples of a global batch each data stream gives.

    Shares differ by at most one. Where P does not divide the batch, the larger share moves on from step to
    step, so that all streams advance alike; it stays within blocks of streams that are the smallest which any
    number of ranks dividing both P and the batch can own, so every rank has exactly its batch in every step.

    pieces: the parts in which a share is given out; ``--accum-freq``, so that no worker holds more than a
    forward pass needs.

    >>> [[Dealing(10, 4).share(stream, step) for stream in range(4)] for step in range(2)]
    [[2, 3, 2, 3], [3, 2, 3, 2]]
    """

    global_batch: int
    streams: int
    pieces: int = 1

    def share(self, stream: int, step: int) -> int:
        blocks = gcd(self.streams, self.global_batch)
        length, rows = self.streams // blocks, self.global_batch // blocks
        return _part(rows, length, (stream + step) % length)

    def piece(self, stream: int, step: int, piece: int) -> int:
        """Samples in one piece of the share; may be none."""
        return _part(self.share(stream, step), self.pieces, piece)


@dataclass(frozen=True)
class StreamPlan:
    """The data, and its division among ``streams`` data streams in every pass.

    sizes: samples per shard, or None where any is unknown: whole shards are dealt out then. weights: one per
    shard, for ``resampled``, where a pass is as many draws with replacement as there are shards. shuffle:
    samples in the buffer of each stream.
    """

    urls: tuple[str, ...]
    sizes: tuple[int, ...] | None
    streams: int
    seed: int = 0
    shuffle: int = SHUFFLE_SAMPLES
    resampled: bool = False
    weights: tuple[float, ...] | None = None

    @property
    def total(self) -> int | None:
        """Samples in a pass, where each is seen once in it; else None."""
        return sum(self.sizes) if self.sizes is not None and not self.resampled else None

    def slices(self, pass_index: int, stream: int) -> list[ShardSlice]:
        """What a stream reads in a pass, in this order."""
        if self.resampled:
            rng = random.Random(f"{self.seed}/{pass_index}/draws/{stream}")
            draws = _part(len(self.urls), self.streams, stream) or 1
            drawn = rng.choices(range(len(self.urls)), weights=self.weights, k=draws)
            return [self._whole(shard, f"{stream}.{draw}") for draw, shard in enumerate(drawn)]
        rng = random.Random(f"{self.seed}/{pass_index}/shards")
        order = list(range(len(self.urls)))
        rng.shuffle(order)
        if self.sizes is None:
            return [self._whole(shard) for shard in order[stream :: self.streams]]
        total = sum(self.sizes)
        # cut anew in every pass: a stream whose slice is unreadable gets another one
        begin = (rng.randrange(total) + stream * total // self.streams) % total
        end = begin + _part(total, self.streams, stream)
        return list(self._between(order * 2, begin, end))  # behind the last shard comes the first again

    def length(self, pass_index: int, stream: int) -> int | None:
        """Samples of a stream in a pass; None where sizes are unknown."""
        if self.sizes is None:
            return None
        return sum((one.last or 0) - one.first for one in self.slices(pass_index, stream))

    def _between(self, order: list[int], low: int, high: int) -> Iterator[ShardSlice]:
        """The samples from ``low`` to ``high`` of the shards laid end to end."""
        assert self.sizes is not None
        ends = list(accumulate(self.sizes[shard] for shard in order))
        for place in range(bisect_right(ends, low), len(order)):
            shard, end = order[place], ends[place]
            begin = end - self.sizes[shard]
            if begin >= high:
                return
            if self.sizes[shard]:
                first, last = max(low - begin, 0), min(high, end) - begin
                yield ShardSlice(self.urls[shard], shard, first, last, self.sizes[shard])

    def _whole(self, shard: int, draw: str = "") -> ShardSlice:
        size = self.sizes[shard] if self.sizes else None
        return ShardSlice(self.urls[shard], shard, 0, size, size, draw)


class ShuffleOrder:
    """Places 0, 1, 2, ... of a slice in the order in which a shuffle buffer gives them out.

    Only numbers are shuffled here, so a slice can be continued without reading what was drawn before:
    ``pending`` and everything from ``next_index`` on are what is still to come.

    length: None where it is unknown; set it when the end has been met. Places behind the end that are drawn
    all the same are no samples.

    >>> sorted(ShuffleOrder(6, buffer=3, seed="a"))
    [0, 1, 2, 3, 4, 5]
    """

    def __init__(self, length: int | None, buffer: int, seed: str):
        self.length = length
        self.pending: list[int] = []
        self.next_index = self.drawn = 0
        self._buffer = buffer
        self._goal = min(buffer, SHUFFLE_INITIAL)
        self._rng = random.Random(seed)

    @classmethod
    def at(cls, position: Position, length: int | None, buffer: int, seed: str) -> ShuffleOrder:
        """The order of a slice as it stands after ``position.drawn`` draws."""
        order = cls(length, buffer, seed)
        for place in (next(order) for _ in range(position.drawn)):
            if order.length is None and position.length is not None and place >= position.length:
                order.length = position.length
        return order

    def __iter__(self) -> ShuffleOrder:
        return self

    def __next__(self) -> int:
        while len(self.pending) < self._goal and (self.length is None or self.next_index < self.length):
            self.pending.append(self.next_index)
            self.next_index += 1
        if not self.pending:
            raise StopIteration
        self.drawn += 1
        self._goal = min(self._buffer, self._goal + 1)  # takes in two for one given out, until full
        place = int(self._rng.random() * len(self.pending))
        self.pending[place], self.pending[-1] = self.pending[-1], self.pending[place]
        return self.pending.pop()


def shuffle_samples(streams: int, mean_bytes: float | None) -> int:
    """Samples in the shuffle buffer of each of so many streams; the buffers of all have a bound of their own.

    mean_bytes: of an encoded sample; None where it is unknown.
    """
    samples = min(SHUFFLE_SAMPLES, SHUFFLE_SAMPLES_IN_ALL // streams)
    if mean_bytes:
        samples = min(samples, int(min(SHUFFLE_BYTES, SHUFFLE_BYTES_IN_ALL / streams) / mean_bytes))
    else:
        samples //= 5
    return max(1, samples)


def _part(total: int, parts: int, part: int) -> int:
    """Length of one of so many nearly equal parts; all of them add up to ``total``."""
    return (part + 1) * total // parts - part * total // parts
