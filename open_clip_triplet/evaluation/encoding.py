"""Filling an embedding store: what it lacks is decoded ahead, encoded in batches, written every so often."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from open_clip_triplet.errors import ImageError
from open_clip_triplet.evaluation.encode import Encoder, decode_all, decoding_threads, open_image
from open_clip_triplet.evaluation.images import ImageRef, content_id
from open_clip_triplet.evaluation.store import EmbeddingStore

#: rows between two writes, so that a run cut short loses little
FLUSH = 2048


class EncodingJob:
    """Encodes what a store lacks, this process's share of it.

    Args:
        get_encoder: makes the model; called only if something has to be encoded.
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

    def images(self, refs: dict[str, ImageRef]) -> None:
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

        with ThreadPoolExecutor(decoding_threads()) as pool, self._bar(len(missing), "images") as bar:
            for identity, tensor, remarks in decode_all(pool, load, missing):
                pending.add(identity, tensor, remarks)
                if len(pending.tensors) == self.batch_size:
                    pending.encode()
                if len(pending.ids) >= FLUSH:
                    pending.write()
                bar.update()
        pending.write()

    def texts(self, captions: dict[str, str]) -> None:
        """Encode the missing ones of ``captions`` (identity -> caption)."""
        missing = self.store.missing("texts", captions)
        # neighbours of like length share a batch, which is then as short as they are
        missing = sorted(missing, key=lambda i: (len(captions[i]), captions[i]))[self.rank :: self.world]
        if not missing:
            return
        encoder = self.get_encoder()
        with self._bar(len(missing), "captions") as bar:
            for start in range(0, len(missing), FLUSH):
                ids = missing[start : start + FLUSH]
                rows = []
                for first in range(0, len(ids), self.batch_size):
                    batch = ids[first : first + self.batch_size]
                    rows.append(encoder.texts([captions[i] for i in batch]))
                    bar.update(len(batch))
                self.store.add("texts", ids, np.concatenate(rows))

    def _bar(self, total: int, what: str):
        from tqdm import tqdm

        return tqdm(total=total, desc=what, unit=" " + what, disable=not self.progress, leave=False)


def _decode(identity: str, ref: ImageRef, preprocess: Callable) -> tuple:
    """(tensor, remarks), or (None, why not): an ``ImageError`` only where the very bytes are damaged."""
    data = b""
    try:
        data = ref.read()
        image, remarks = open_image(data)
        return preprocess(image.crop(ref.crop) if ref.crop else image), remarks
    except ImageError as error:
        if content_id(data) != identity.partition("|")[0]:
            return None, OSError(f"{ref}: other bytes than when it was identified")
        return None, error
    except (OSError, MemoryError) as error:
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
