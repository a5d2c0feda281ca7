"""The first stage of ``mine``: features, digests and places of all pairs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar

import numpy as np

from open_clip_triplet.errors import ShardError
from open_clip_triplet.tripletdata.backends.embed import CaptionEmbedder, OpenClipEmbedder, SentenceEmbedder
from open_clip_triplet.tripletdata.backends.pairs import CAPTIONS, read_pairs
from open_clip_triplet.tripletdata.run.sample import Sample, Stats
from open_clip_triplet.tripletdata.run.stage import RUNTIME_ONLY, Stage
from open_clip_triplet.tripletdata.run.task import ShardTask

#: captions that a space of words is fitted to
FIT_ROWS = 1_000_000


@dataclass
class Embed(Stage):
    """Stage: features [n, D] in halves, digests and places of a shard's pairs, beside a shard of captions.

    Args:
        collection: hash of all inputs, where the space depends on them.
        shards: all inputs, to fit such a space to.
    """

    name: ClassVar[str] = "embed"
    redoes_whole: ClassVar[bool] = True
    embedder: str = "captions"
    model: str | None = None
    pretrained: str | None = None
    collection: str = ""
    shards: tuple[str, ...] = field(default=(), metadata=RUNTIME_ONLY)
    _space: Any = field(default=None, metadata=RUNTIME_ONLY, repr=False)

    @property
    def uses_gpu(self) -> bool:
        return bool(self.model) or self.embedder != "captions"

    def open(self, device: str) -> None:
        if self.model:
            self._space = OpenClipEmbedder(self.model, self.pretrained, device)
        elif self.embedder != "captions":
            self._space = SentenceEmbedder(self.embedder, device)
        else:
            self._space = CaptionEmbedder(self._captions())

    def _captions(self) -> Iterator[list[str]]:
        """Captions of the collection, a million at most; what is damaged is met where it is counted."""
        each = -(-FIT_ROWS // max(len(self.shards), 1))
        for number, shard in enumerate(self.shards):
            samples = ShardTask(number, (shard,)).samples(Stats(), images=False)
            with contextlib.suppress(ShardError):
                for sample in islice(samples, each):
                    yield [sample.text, *(c for c in map(str, sample.meta["captions"]) if c != sample.text)]

    def process(self, task: ShardTask, stats: Stats) -> Iterator[Sample]:
        pairs = list(read_pairs(task, stats))
        if not pairs:
            return
        images = [pair.image() for pair in pairs] if self._space.reads_images else []
        features = np.nan_to_num(self._space([pair.captions for pair in pairs], images)).astype(np.float16)
        lines = [pair.line() for pair in pairs]
        hashes = np.zeros((len(pairs), CAPTIONS), np.uint64)
        for row, pair in zip(hashes, pairs):
            found = pair.caption_hashes()
            row[: len(found)] = found
        stats.arrays = {
            "features": features,
            "digests": np.array([pair.digest for pair in pairs], np.uint64),
            "captions": hashes,
            "ends": np.cumsum([len(line) for line in lines]),
            "lines": np.frombuffer(b"".join(lines), np.uint8),
        }
        for number, pair in enumerate(pairs, 1):
            stats.report(number / len(pairs))
            yield Sample(pair.key, pair.captions[0])
