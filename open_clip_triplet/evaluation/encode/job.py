"""Filling an embedding store: what it lacks is decoded ahead, encoded in batches, written every so often."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from open_clip_triplet.errors import ImageError
from open_clip_triplet.evaluation.encode.encoder import Encoder
from open_clip_triplet.evaluation.encode.progress import Progress
from open_clip_triplet.evaluation.hashes import content_id
from open_clip_triplet.evaluation.images import ImageRef, cropped, open_image
from open_clip_triplet.evaluation.store import EmbeddingStore

#: rows, and seconds, between two writes, so that a run cut short loses little
FLUSH_ROWS = 2048
FLUSH_S = 60.0


def decoding_threads() -> int:
    """Threads for decoding: the cores this process may use, 8 at most (PIL releases the GIL)."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def decode_all(pool: ThreadPoolExecutor, load: Callable, items: Iterable, ahead: int = 64) -> Iterator:
    """``load(item)`` of every item, in order, decoded ``ahead`` items in front of the reader."""
    pending = []
    for item in items:
        pending.append(pool.submit(load, item))
        if len(pending) >= ahead:
            yield pending.pop(0).result()
    for future in pending:
        yield future.result()


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
        encoder = self.get_encoder()
        pending = _PendingImages(self.store, encoder)

        def load(identity: str):
            return identity, *_decode(identity, refs[identity], encoder.preprocess)

        with (
            ThreadPoolExecutor(decoding_threads()) as pool,
            Progress(len(missing), f"{label}: images", self.progress) as progress,
        ):
            for identity, tensor, remarks in decode_all(pool, load, missing):
                pending.add(identity, tensor, remarks)
                if len(pending.tensors) == self.batch_size:
                    pending.encode()
                    if pending.due:
                        pending.write()
                progress.update()
        pending.write()

    def texts(self, captions: dict[str, str], label: str) -> None:
        """Encode the missing ones of ``captions`` (identity -> caption); remark on those that were cut."""
        missing = self.store.missing("texts", captions)
        # neighbours of like length share a batch, which is then as short as they are
        missing = sorted(missing, key=lambda i: (len(captions[i]), captions[i]))[self.rank :: self.world]
        if not missing:
            return
        encoder = self.get_encoder()
        ids: list[str] = []
        rows: list[np.ndarray] = []
        remarks: dict[str, list[str]] = {}
        written = time.monotonic()
        with Progress(len(missing), f"{label}: captions", self.progress) as progress:
            for first in range(0, len(missing), self.batch_size):
                batch = missing[first : first + self.batch_size]
                texts = [captions[i] for i in batch]
                tokens = encoder.tokenizer(texts)
                rows.append(encoder.tokens(tokens))
                ids += batch
                remarks.update((i, ["cut"]) for i, cut in zip(batch, encoder.cut(texts, tokens)) if cut)
                progress.update(len(batch))
                last = first + self.batch_size >= len(missing)
                if last or len(ids) >= FLUSH_ROWS or time.monotonic() - written > FLUSH_S:
                    self.store.add("texts", ids, np.concatenate(rows), remarks=remarks)
                    ids, rows, remarks, written = [], [], {}, time.monotonic()


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


class _PendingImages:
    """Images on their way: decoded, then encoded, then in the store."""

    def __init__(self, store: EmbeddingStore, encoder: Encoder):
        self.store, self.encoder = store, encoder
        self.tensors: dict[str, object] = {}
        self._clear()

    def _clear(self) -> None:
        self.ids: list[str] = []
        self.rows: list[np.ndarray] = []
        self.remarks: dict[str, list[str]] = {}
        self.failed: dict[str, str] = {}
        self.written = time.monotonic()

    @property
    def due(self) -> bool:
        return len(self.ids) >= FLUSH_ROWS or time.monotonic() - self.written > FLUSH_S

    def add(self, identity: str, tensor, remarks) -> None:
        if isinstance(remarks, ImageError):
            self.failed[identity] = str(remarks)
        if tensor is None:
            return
        self.tensors[identity] = tensor
        if remarks:
            self.remarks[identity] = remarks

    def encode(self) -> None:
        if self.tensors:
            self.rows.append(self.encoder.images(list(self.tensors.values())))
            self.ids += self.tensors
            self.tensors = {}

    def write(self) -> None:
        self.encode()
        if self.ids or self.failed:
            rows = np.concatenate(self.rows) if self.rows else np.empty((0, 0), np.float32)
            self.store.add("images", self.ids, rows, remarks=self.remarks, failed=self.failed)
        self._clear()
