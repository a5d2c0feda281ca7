"""Images and captions to unit-norm float32 rows, and a store filled with what it lacks.

Light imports: training uses this too, and with everything stored no torch is loaded.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from open_clip_triplet.errors import ImageError
from open_clip_triplet.evaluation.images import ImageRef, content_id, open_image
from open_clip_triplet.evaluation.store import EmbeddingStore

#: rows between two writes, so that a run cut short loses little
FLUSH = 2048


def decoding_threads() -> int:
    """Threads for decoding: the cores this process may use, 8 at most (PIL releases the GIL)."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


class Encoder:
    """A model with its preprocessing and tokenizer, as two functions to unit-norm numpy rows.

    Args:
        model: anything with ``encode_image([n, 3, H, W])`` and ``encode_text([n, L])``, both to [n, D].
        preprocess: PIL image -> float tensor [3, H, W].
        tokenizer: list of n captions -> integer tensor [n, L].
        device: where batches go.
        autocast: a function to a context manager (as OpenCLIP's ``get_autocast`` gives), or None.
        input_dtype: what images are cast to, e.g. ``torch.float16`` for a model in pure fp16.
    """

    def __init__(
        self,
        model,
        preprocess: Callable,
        tokenizer: Callable,
        *,
        device="cpu",
        autocast=None,
        input_dtype=None,
    ):
        self.model, self.preprocess, self.tokenizer = model, preprocess, tokenizer
        self.device, self.input_dtype = device, input_dtype
        self.autocast = autocast or contextlib.nullcontext
        self._encode_text: Callable | None = None

    def images(self, tensors: Sequence) -> np.ndarray:
        """[n, D] float32, unit norm, of n preprocessed images."""
        import torch

        batch = torch.stack(list(tensors)).to(self.device, dtype=self.input_dtype, non_blocking=True)
        return self._rows(self.model.encode_image, batch)

    def texts(self, captions: Sequence[str]) -> np.ndarray:
        """[n, D] float32, unit norm, of n captions."""
        from open_clip_triplet.evaluation.trim import trimmed_text_encoder

        if self._encode_text is None:
            self._encode_text = trimmed_text_encoder(self.model, self.tokenizer, self.device, self._run)
        return self._rows(self._encode_text, self.tokenizer(list(captions)).to(self.device))

    def _run(self, encode: Callable, batch):
        import torch

        with torch.inference_mode(), self.autocast():
            return encode(batch)

    def _rows(self, encode: Callable, batch) -> np.ndarray:
        import torch

        features = self._run(encode, batch).float()
        return torch.nn.functional.normalize(features, dim=-1).cpu().numpy()


@contextlib.contextmanager
def evaluating(model):
    """The model in eval mode; each submodule's own mode is put back afterwards."""
    modules = getattr(model, "modules", None)
    before = [(module, module.training) for module in modules()] if modules else []
    if before:
        model.eval()
    try:
        yield model
    finally:
        for module, training in before:
            module.training = training


def decode_all(pool: ThreadPoolExecutor, load: Callable, items: Sequence, ahead: int = 64):
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
