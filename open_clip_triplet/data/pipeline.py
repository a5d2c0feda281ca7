"""What a data worker does, as a list of webdataset stages for each of its data streams.

    passes -> read -> shuffle -> (stages of yours) -> decode and augment -> batch -> tokenize

:meth:`StreamPieces.pipeline` returns the list; ``wds.DataPipeline`` runs it. A stage is a picklable callable that
maps an iterator to an iterator. Between ``shuffle`` and ``decode`` the items are samples with encoded members
under field names (``image text neg_image neg_text meta``), beside ``__key__``, ``__url__`` and ``__place__``.
A stage put there, by ``pipeline.insert(3, UserStage(stage))`` or ``--data-stage module:function``, may change
samples or leave some out, and keeps their order. What it leaves out is counted.

A :class:`Piece` holds the rows of a few samples, side by side: images ``[x0, x0', x1, x1', ...]`` as one tensor
([N*G, 3, H, W], or uint8 [N*G, H, W, 3] of ``fast``), texts ``[y0, y0'a, y0'b, ..., y1, ...]`` as [N*(1+K), L];
one row per sample where the method reads no negative of that modality.
"""

from __future__ import annotations

import functools
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import webdataset as wds
from torch.utils.data import IterableDataset, default_collate, get_worker_info

from open_clip_triplet.data.captions import CaptionChoice
from open_clip_triplet.data.counts import FILLED, Dropped
from open_clip_triplet.data.reading import ShardWatch, read_shard, read_slice
from open_clip_triplet.data.stream import Dealing, Position, ShuffleOrder, StreamPlan
from open_clip_triplet.errors import ShardError, UsageError

#: passes in a row without one usable sample after which a stream stops the run
BARREN_PASSES = 30
#: shards whose first sample is tried when a stream's whole slice was unusable
SHARDS_TRIED = 64
#: ``source`` of what stands at the end of a pass
END = "end"


class Place(NamedTuple):
    """A sample's place in its stream: pass, number of its draw, and where the stream goes on after it.

    source: tells apart the shards, whose keys may repeat, and the readings of one sample.
    """

    pass_index: int
    draw: int
    after: Position
    source: str = ""


class Unusable(NamedTuple):
    """Travels in place of a sample. ``reason`` is None where there was none, as at the end of a pass."""

    place: Place
    reason: str | None

    @property
    def ends_pass(self) -> bool:
        return self.place.source == END


class Row(NamedTuple):
    """A sample as tensors and captions. filled: captions of some kind had to be used more than once."""

    place: Place
    images: list
    texts: list[str]
    filled: bool


class Piece(NamedTuple):
    """Rows of a few samples of one stream; where the stream stands after them, and what was counted."""

    images: Any
    texts: Any
    stream: int
    position: Position
    counted: list[tuple[int, str, int]]


@dataclass(frozen=True)
class SampleTransform:
    """Turns samples into the rows of a batch.

    images: encoded images of a sample, and the names its random state comes from, to their tensors.
    tokenizer: list of captions to [len, L]. fields: members that a sample must have. captions: which are read.
    names: member suffix to field.
    """

    images: Callable
    tokenizer: Callable
    fields: tuple[str, ...]
    captions: CaptionChoice
    seed: int
    names: Mapping[str, str]

    @property
    def image_group(self) -> int:
        """Image rows per sample."""
        return 1 + ("neg_image" in self.fields)

    @property
    def fields_read(self) -> frozenset[str]:
        return frozenset(self.fields) | ({"meta"} if self.captions.reads_meta else set())

    def __call__(self, sample: dict) -> Row:
        """The rows of a sample. Captions and augmentation depend on seed, pass and key alone.

        Raises:
            Dropped: the sample cannot be used.
        """
        for name in self.fields:
            if name not in sample:
                raise Dropped("missing member", name)
        place = sample["__place__"]
        names = (self.seed, place.pass_index, place.source, sample["__key__"])
        rng = random.Random("/".join(map(str, names))) if self.captions.is_random else None
        texts, filled = self.captions(sample, rng, keep_first="neg_image" in self.fields)
        encoded = [sample[name] for name in ("image", "neg_image")[: self.image_group]]
        return Row(place, self.images(encoded, *names), texts, filled)


def passes(plan: StreamPlan, stream: int, position: Position) -> Iterator[tuple[int, ShuffleOrder]]:
    """Source: (pass, order) for pass after pass of one stream, from a position on."""
    for pass_index in count(position.pass_index):
        seed = f"{plan.seed}/{pass_index}/{stream}"
        yield pass_index, ShuffleOrder.at(position, plan.length(pass_index, stream), plan.shuffle, seed)
        position = Position()


@dataclass
class Read:
    """Passes to (pass, order, samples still to come of it, in the order of the shards)."""

    plan: StreamPlan
    stream: int
    transform: SampleTransform
    watch: ShardWatch
    row: int  # of the watch

    def __call__(self, passes: Iterator) -> Iterator[tuple]:
        for pass_index, order in passes:
            # now: the order moves on as it is drawn from
            yield pass_index, order, self._samples(pass_index, order, frozenset(order.pending), order.next_index)

    def _samples(
        self, pass_index: int, order: ShuffleOrder, pending: frozenset[int], next_index: int
    ) -> Iterator[tuple]:
        """(index in the slice, source, sample) for the indices pending and from ``next_index`` on, ascending."""
        read = functools.partial(
            read_slice, pass_index=pass_index, watch=self.watch, fields=self.transform.fields_read,
            names=self.transform.names,
        )
        start = 0
        for part in self.plan.slices(pass_index, self.stream):
            stop = None if part.last is None else start + part.last - part.first
            if stop is not None and stop <= next_index and pending.isdisjoint(range(start, stop)):
                start = stop
                continue
            self.watch.set_reading(self.row, part.shard)
            offset, source = start - part.first, f"{part.shard}/{part.draw}"

            def wanted(index: int, offset: int = offset) -> bool:
                return index + offset >= next_index or index + offset in pending

            for index, sample in read(part, wanted):
                start = index + offset + 1
                if sample is not None:
                    yield index + offset, source, sample
        self.watch.set_reading(self.row, -1)
        order.length = start if order.length is None else order.length


def shuffle(passes: Iterator) -> Iterator[dict | Unusable]:
    """Samples in their shuffled order, each with its place; :class:`Unusable` for what cannot be read.

    The end of a pass comes as an ``Unusable`` too, so that it is known of even where no sample is.
    """
    for pass_index, order, samples in passes:
        held: dict[int, tuple] = {}
        for index in order:
            while index not in held and (found := next(samples, None)) is not None:
                held[found[0]] = found[1:]
            source, sample = held.pop(index, ("", None))
            over = not order.pending and order.next_index == order.length
            after = Position(pass_index + 1) if over else Position(pass_index, order.drawn, order.length)
            place = Place(pass_index, order.drawn - 1, after, source)
            if isinstance(sample, dict):
                sample["__place__"] = place
                yield sample
            else:
                yield Unusable(place, sample)
        next(samples, None)  # what lies behind the slice, if sizes.json is wrong, is warned of on the way
        yield Unusable(Place(pass_index, order.drawn, Position(pass_index + 1), END), None)


@dataclass
class UserStage:
    """A stage of the user's: it sees samples alone; what travels beside them goes around it, and comes in its place."""

    stage: Callable[[Iterator[dict]], Iterator[dict]]

    @property
    def name(self) -> str:
        return f"{self.stage.__module__}:{getattr(self.stage, '__qualname__', self.stage)}"

    def __call__(self, items: Iterator) -> Iterator:
        aside: deque[Unusable] = deque()
        samples = self.stage(self._samples(items, aside))
        if not isinstance(samples, Iterable):
            raise UsageError(f"the data stage {self.name} gave {type(samples).__name__}, not an iterator of samples")
        for sample in samples:
            if not isinstance(sample, dict) or "__place__" not in sample:
                raise UsageError(f"the data stage {self.name} gave none of its samples; make one as {{**sample, ...}}")
            while aside and aside[0].place[:2] < sample["__place__"][:2]:  # the stage may hold samples that come later
                yield aside.popleft()
            yield sample
        raise UsageError(f"the data stage {self.name} ended, and its samples never do")

    def _samples(self, items: Iterator, aside: deque[Unusable]) -> Iterator[dict]:
        passes = 0
        for item in items:
            if not isinstance(item, Unusable):
                yield item
                continue
            passes = passes + item.ends_pass if aside else 0
            if passes > BARREN_PASSES:
                raise ShardError(f"the data stage {self.name} has left out every sample of {passes} passes")
            aside.append(item)


@dataclass
class Decode:
    """Samples to :class:`Row`; what cannot be decoded becomes :class:`Unusable`.

    max_bad: where a whole slice was unusable and a larger share of the shards looks no better, the run stops.
    """

    plan: StreamPlan
    transform: SampleTransform
    max_bad: float

    def __call__(self, items: Iterator) -> Iterator[Row | Unusable]:
        barren, usable, reason = 0, False, "every shard is empty"
        for item in items:
            if isinstance(item, Unusable):
                yield item
                reason = item.reason or reason
                if item.ends_pass:
                    barren, usable = 0 if usable else barren + 1, False
                    if barren:
                        self._check_others(barren, reason)
                continue
            try:
                row: Row | Unusable = self.transform(item)
                usable = True
            except Dropped as dropped:
                reason = dropped.reason
                row = Unusable(item["__place__"], reason)
            yield row

    def _check_others(self, barren: int, reason: str) -> None:
        """Look at the first sample of many shards: is it only this slice that is bad?"""
        urls = self.plan.urls[:: -(-len(self.plan.urls) // SHARDS_TRIED)]
        bad = sum(not self._usable(url) for url in urls)
        if bad > self.max_bad * len(urls) or barren >= BARREN_PASSES:
            raise ShardError(
                f"none of the samples of a whole data stream can be used (last: {reason}), and {bad} of "
                f"{len(urls)} shards looked at begin with one that cannot be used either. Check the shards; "
                "--max-bad-fraction sets how much may be bad."
            )

    def _usable(self, url: str) -> bool:
        try:
            _, sample = next(read_shard(url, self.transform.fields_read, self.transform.names))
            self.transform({**sample, "__place__": Place(0, 0, Position())})
        except (OSError, ShardError, Dropped, StopIteration):
            return False
        return True


def batch(
    rows: Iterator[Row | Unusable], dealing: Dealing, stream: int, first_step: int, position: Position
) -> Iterator[Piece]:
    """Rows to :class:`Piece`, as large as the stream's share of each batch; texts are still strings."""
    expected = position[:2]
    for step in count(first_step):
        for piece in range(dealing.pieces):
            kept: list[Row] = []
            counted: Counter = Counter()
            size = dealing.piece(stream, step, piece)
            while len(kept) < size:
                row = next(rows)
                pass_index, draw, after, _ = row.place
                if pass_index == expected[0] and draw > expected[1]:
                    counted[pass_index, "left out by a data stage"] += draw - expected[1]
                if after[:2] > expected:
                    position, expected = after, after[:2]
                if isinstance(row, Row):
                    kept.append(row)
                    counted[pass_index, "seen"] += 1
                    counted[pass_index, FILLED] += row.filled
                elif row.reason:
                    counted[pass_index, row.reason] += 1
            images = [image for row in kept for image in row.images]
            texts = [text for row in kept for text in row.texts]
            listed = [(*key, number) for key, number in counted.items() if number]
            yield Piece(default_collate(images) if images else None, texts, stream, position, listed)


def tokenize(pieces: Iterator[Piece], tokenizer: Callable) -> Iterator[Piece]:
    """The texts of pieces to token ids [N*(1+K), L]."""
    for piece in pieces:
        yield piece._replace(texts=tokenizer(piece.texts) if piece.texts else None)


@dataclass(eq=False)
class StreamPieces(IterableDataset):
    """The pieces of one rank's data streams, for a DataLoader with ``batch_size=None``. Endless.

    The loader asks its workers in turn; a worker gives one piece of each of its streams in turn. So pieces
    come in the order of the streams, whatever the number of workers, as long as it divides theirs.

    streams: those of this rank. positions: where each stream of the run starts. step: where the dealing does.
    """

    plan: StreamPlan
    dealing: Dealing
    transform: SampleTransform
    watch: ShardWatch
    streams: range
    positions: tuple[Position, ...]
    step: int
    stages: tuple[Callable, ...]
    max_bad: float

    def __iter__(self) -> Iterator[Piece]:
        info = get_worker_info()
        first, every = (info.id, info.num_workers) if info else (0, 1)
        pipelines = [iter(wds.DataPipeline(*self.pipeline(s))) for s in self.streams[first::every]]
        while True:
            for pieces in pipelines:
                yield next(pieces)

    def pipeline(self, stream: int) -> list[Callable]:
        """The stages of one data stream, in order; to insert one of yours is one line."""
        start = self.positions[stream]
        return [
            functools.partial(passes, self.plan, stream, start),
            Read(self.plan, stream, self.transform, self.watch, stream - self.streams.start),
            shuffle,
            *map(UserStage, self.stages),
            Decode(self.plan, self.transform, self.max_bad),
            functools.partial(batch, dealing=self.dealing, stream=stream, first_step=self.step, position=start),
            functools.partial(tokenize, tokenizer=self.transform.tokenizer),
        ]
