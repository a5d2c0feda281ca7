"""Filling an embedding store: what it lacks is decoded ahead, encoded in batches, written every so often."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import numpy as np

from open_clip_triplet.errors import ImageError
from open_clip_triplet.evaluation.encode.encoder import Encoder
from open_clip_triplet.evaluation.encode.progress import Progress
from open_clip_triplet.evaluation.hashes import content_id
from open_clip_triplet.evaluation.images import ImageRef, cropped, open_image
from open_clip_triplet.evaluation.store import EmbeddingStore
from open_clip_triplet.threads import map_ahead

#: rows, and seconds, between two writes, so that a run cut short loses little
FLUSH_ROWS = 2048
FLUSH_S = 60.0


class EncodingJob:
    """Encodes what a store lacks, this process's share of it.

    Args:
        get_encoder: makes the model; called only if something has to be encoded.
        progress: whether to show how far it is.
        share: (rank, world size): every world-size-th missing item is this process's.
    """

    def __init__(
        self,
        get_encoder: Callable[[], Encoder],
        store: EmbeddingStore,
        batch_size: int,
        progress: bool,
        share: tuple[int, int] = (0, 1),
    ):
        self.get_encoder, self.store = get_encoder, store
        self.batch_size, self.progress = batch_size, progress
        self.rank, self.world = share

    def images(self, refs: dict[str, ImageRef], label: str) -> None:
        """Encode the missing ones of ``refs`` (identity -> where it lies).

        An image that cannot be decoded is remembered as failed; one that cannot be read now is not, so
        that the next run tries it again.
        """
        missing = self.store.missing("images", refs)[self.rank :: self.world]
        if not missing:
            return
        encoder, out = self.get_encoder(), _Writer(self.store, "images")
        batch: dict[str, object] = {}

        def load(identity: str):
            return identity, *_decode(identity, refs[identity], encoder.preprocess)

        with Progress(len(missing), f"{label}: images", self.progress) as progress:
            for identity, tensor, remarks in map_ahead(load, missing):
                if tensor is not None:
                    batch[identity] = tensor
                    if remarks:
                        out.remarks[identity] = remarks
                elif isinstance(remarks, ImageError):
                    out.failed[identity] = str(remarks)
                if len(batch) == self.batch_size:
                    out.add(batch, encoder.images(list(batch.values())))
                    batch = {}
                progress.update()
        if batch:
            out.add(batch, encoder.images(list(batch.values())))
        out.write()

    def texts(self, captions: dict[str, str], label: str) -> None:
        """Encode the missing ones of ``captions`` (identity -> caption); remark on those that were cut."""
        missing = self.store.missing("texts", captions)
        # neighbours of like length share a batch, which is then as short as they are
        missing = sorted(missing, key=lambda i: (len(captions[i]), captions[i]))[self.rank :: self.world]
        if not missing:
            return
        encoder, out = self.get_encoder(), _Writer(self.store, "texts")
        with Progress(len(missing), f"{label}: captions", self.progress) as progress:
            for first in range(0, len(missing), self.batch_size):
                batch = missing[first : first + self.batch_size]
                texts = [captions[i] for i in batch]
                tokens = encoder.tokenizer(texts)
                rows = encoder.tokens(tokens)
                out.remarks.update((i, ["cut"]) for i, cut in zip(batch, encoder.cut(texts, tokens)) if cut)
                out.add(batch, rows)
                progress.update(len(batch))
        out.write()


def _decode(identity: str, ref: ImageRef, preprocess: Callable) -> tuple:
    """(tensor, remarks), or (None, why not): an ``ImageError`` only where the very bytes are damaged."""
    try:
        data = ref.read()
        if content_id(data) != identity.partition("|")[0]:
            return None, OSError(f"{ref}: other bytes than when it was identified")
        image, remarks = open_image(data)
        return preprocess(cropped(image, ref.crop)), remarks
    except (ImageError, OSError, MemoryError) as error:
        return None, error


class _Writer:
    """Rows on their way into the store, with remarks on them and what has failed; written every so often."""

    def __init__(self, store: EmbeddingStore, kind: str):
        self.store, self.kind = store, kind
        self._clear()

    def _clear(self) -> None:
        self.ids: list[str] = []
        self.rows: list[np.ndarray] = []
        self.remarks: dict[str, list[str]] = {}
        self.failed: dict[str, str] = {}
        self.written = time.monotonic()

    def add(self, ids: Iterable[str], rows: np.ndarray) -> None:
        self.ids += ids
        self.rows.append(rows)
        if len(self.ids) >= FLUSH_ROWS or time.monotonic() - self.written > FLUSH_S:
            self.write()

    def write(self) -> None:
        if self.ids or self.failed:
            rows = np.concatenate(self.rows) if self.rows else np.empty((0, 0), np.float32)
            self.store.add(self.kind, self.ids, rows, remarks=self.remarks, failed=self.failed)
        self._clear()
