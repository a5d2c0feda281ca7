"""What a data worker does: read, shuffle, decode, augment, tokenize, group rows, batch.

A batch is ``(images, texts, ticket)`` with the rows of a sample side by side: images ``[x0, x0', x1, x1', ...]``
as one tensor ([N*G, 3, H, W], or uint8 [N*G, H, W, 3] of ``fast``), texts
``[y0, y0'a, y0'b, ..., y1, ...]`` as [N*(1+K), L]; one row per sample where the method reads no negative of
that modality. The ticket is for :mod:`open_clip_triplet.data.buffers`.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import IterableDataset, get_worker_info

from open_clip_triplet.data.buffers import BatchBuffers
from open_clip_triplet.data.captions import choose_captions
from open_clip_triplet.data.counts import Counts, Dropped
from open_clip_triplet.data.epochs import EpochPlan, Part, ShuffleOrder
from open_clip_triplet.data.reading import Unreadable, read_part
from open_clip_triplet.errors import ShardError


class Position:
    """Epoch and first batch, set by the training process and seen by its workers."""

    def __init__(self, epoch: int = 0):
        self._state = torch.tensor([epoch, 0], dtype=torch.int64).share_memory_()

    def set_value(self, epoch: int) -> None:
        """Named as OpenCLIP's ``SharedEpoch`` names it, so that ``DataInfo.set_epoch`` reaches it."""
        self._state[0] = epoch

    def get_value(self) -> int:
        return int(self._state[0])

    @property
    def first_batch(self) -> int:
        return int(self._state[1])

    @first_batch.setter
    def first_batch(self, batch: int) -> None:
        self._state[1] = batch


@dataclass(frozen=True)
class Rows:
    """Turns samples into the rows of a batch.

    images: encoded images of a sample, and the names its random state comes from, to their tensors.
    tokenizer: list of captions to [len, L]. roles: members that a sample must have (``Method.roles``).
    negatives: K, hard negative captions per sample. sampling: one of ``captions.SAMPLING``.
    """

    images: Callable
    tokenizer: Callable
    roles: tuple[str, ...]
    seed: int = 0
    negatives: int = 0
    sampling: str = "first"

    @property
    def image_group(self) -> int:
        """Image rows per sample."""
        return 1 + ("neg_image" in self.roles)

    @property
    def roles_read(self) -> tuple[str, ...]:
        return self.roles + ("meta",) * (self.sampling == "random" or self.negatives > 1)

    def load(self, sample: dict | Unreadable, epoch: int, visit: str) -> tuple[list, list[str], bool]:
        """Image tensors and captions of a sample, and whether negatives had to be filled up.

        Captions and augmentation depend on seed, epoch, key and ``visit`` alone. ``visit`` tells apart the
        shards, whose keys may repeat, and the readings of one sample.

        Raises:
            Dropped: the sample cannot be used.
        """
        if isinstance(sample, Unreadable):
            raise Dropped(sample.reason)
        for role in self.roles:
            if role not in sample:
                raise Dropped("missing member", role)
        names = (self.seed, epoch, visit, sample["__key__"])
        captions, filled = choose_captions(
            sample,
            random.Random("/".join(map(str, names))) if self.sampling == "random" else None,
            sampling=self.sampling,
            negatives=self.negatives,
            keep_first="neg_image" in self.roles,
        )
        encoded = [sample[role] for role in ("image", "neg_image")[: self.image_group]]
        return self.images(encoded, *names), captions, filled


class TrainingBatches(IterableDataset):
    """Batches of one rank, for a DataLoader with ``batch_size=None`` and ``plan.workers`` workers.

    shuffle_samples: size of the shuffle buffer of encoded samples, per worker.
    """

    def __init__(
        self,
        plan: EpochPlan,
        rows: Rows,
        counts: Counts,
        position: Position,
        buffers: BatchBuffers,
        shuffle_samples: int,
    ):
        super().__init__()
        self.plan, self.rows, self.counts = plan, rows, counts
        self.position, self.buffers, self.shuffle_samples = position, buffers, shuffle_samples
        self._shard_index = {url: i for i, url in enumerate(plan.urls)}

    def __iter__(self) -> Iterator[tuple]:
        info = get_worker_info()
        self._process = info.id if info else 0
        self._epoch = self.position.get_value()
        self.counts.clear(self._process)
        self.buffers.start_epoch()
        first = self.position.first_batch
        # The loader asks worker 0 first, so that one must take the share which holds the first batch wanted.
        worker = (self._process + first) % self.plan.workers
        return self._batches(worker, done=len(range(worker, first, self.plan.workers)))

    def _batches(self, worker: int, done: int) -> Iterator[tuple]:
        """The batches of a worker's share from its number ``done`` on; those before are not decoded.

        A sample that cannot be used is replaced, in its batch, by one that follows it (which is then
        also seen in its own turn), or after the last one by the first. So no other batch changes, every
        rank makes the same number, and a resume needs no record of what was dropped.
        """
        size = self.plan.batch_size
        stream = self._samples(worker, done * size)
        ahead: deque = deque()
        for _ in range(done, self.plan.slot_length(worker) // size):
            own = [ahead.popleft() if ahead else next(stream) for _ in range(size)]
            loaded, names = [], set()
            for found in own:
                item = self._load(found)
                if isinstance(item, Unreadable):
                    self._count(item.reason)
                else:
                    loaded.append(item)
                    names.add(_name(found))
            self._count("filled up negative captions", sum(filled for _, _, filled in loaded))
            self._count("seen", len(loaded))
            self._count("repeated", size - len(loaded))
            self._fill_up(loaded, names, ahead, stream, self.plan.slot_length(worker))
            images, ticket = self.buffers.stack([image for images, _, _ in loaded for image in images])
            yield images, self.rows.tokenizer([text for _, texts, _ in loaded for text in texts]), ticket

    def _fill_up(self, loaded: list, names: set, ahead: deque, stream: Iterator, share: int) -> None:
        """Add samples that follow, none twice in a batch unless the worker's whole share has no other.

        ``ahead`` keeps those read, for their own turn: of the ones that cannot be used the reason only, so
        that it holds at most about two batches of encoded samples, and none of them is tried again.
        """
        tried = 0
        while len(loaded) < self.plan.batch_size:
            if tried > max(self.plan.used, 10_000):
                raise ShardError(f"none of {tried:,} samples in a row can be used; last: {ahead[-1]}")
            if tried == len(ahead):
                ahead.append(next(stream))
            part, sample = found = ahead[tried]
            tried += 1
            if isinstance(sample, Unreadable) or (_name(found) in names and tried <= share):
                continue
            item = self._load(found)
            if isinstance(item, Unreadable):
                ahead[tried - 1] = part, item
            else:
                loaded.append(item)
                names.add(_name(found))

    def _samples(self, worker: int, done: int) -> Iterator[tuple[Part, dict | Unreadable]]:
        """A worker's samples in shuffled order without the first ``done``, then again from the start."""
        share = self.plan.slot_length(worker)
        while True:
            seed = f"{self.plan.seed}/{self._epoch}/{self.plan.rank}/{worker}"
            order = ShuffleOrder(
                share if self.plan.exact else None, buffer=min(self.shuffle_samples, share), seed=seed
            )
            for _ in range(done):
                next(order)
            held: dict[int, tuple] = {}
            reader = self._read(worker, frozenset(order.pending), order.following)
            for place in order:
                while place not in held:
                    position, part, sample = next(reader)
                    held[position] = part, sample
                yield held.pop(place)
            done = 0

    def _read(
        self, worker: int, pending: frozenset[int], following: int
    ) -> Iterator[tuple[int, Part, dict | Unreadable]]:
        """(position, part, sample) for the positions pending and from ``following`` on, ascending."""
        start, empty = 0, 0
        for part in self.plan.parts(self._epoch, worker):
            stop = None if part.last is None else start + part.last - part.first
            if stop is not None and stop <= following and pending.isdisjoint(range(start, stop)):
                start = stop
                continue
            self.counts.set_reading(self._process, self._shard_index[part.url])
            offset = start - part.first

            def wanted(index: int, offset: int = offset) -> bool:
                return index + offset >= following or index + offset in pending

            empty += 1
            for index, sample in read_part(part, self.rows.roles_read, wanted, self._count):
                start, empty = index + offset + 1, 0
                if sample is not None:
                    yield index + offset, part, sample
            if empty > 2 * len(self.plan.urls):
                raise ShardError(f"none of the last {empty} shards holds a sample; the last was {part.url}")
        self.counts.set_reading(self._process, -1)

    def _load(self, found: tuple[Part, dict | Unreadable]) -> tuple | Unreadable:
        part, sample = found
        try:
            return self.rows.load(sample, self._epoch, f"{self._shard_index[part.url]}/{part.visit}")
        except Dropped as dropped:
            return Unreadable(dropped.reason)

    def _count(self, name: str, number: int = 1) -> None:
        self.counts.add(self._process, name, number)


def _name(found: tuple[Part, dict]) -> tuple[str, str]:
    """What tells a sample from all others."""
    return found[0].url, found[1]["__key__"]
