"""The loader that OpenCLIP's training loop iterates: device, resume, epoch report, stalled sources."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from torch.utils.data import DataLoader

from open_clip_triplet.data.buffers import BatchBuffers
from open_clip_triplet.data.counts import Counts, summary, too_many_dropped
from open_clip_triplet.data.pipeline import Position

#: seconds without a batch after which the shards being read are named in the log, and again each time
STALL_SECONDS = 60.0


class PairedLoader:
    """Iterates batches as OpenCLIP's loop expects them.

    num_batches: per epoch and rank. num_samples: image rows per epoch over all ranks, which is what
    OpenCLIP's progress line counts. Set ``first_batch`` before an epoch to pass over the batches of it
    that were trained on before a resume; it holds for one epoch.

    finish: batches of (images, texts) from the workers to what the loop gets; see
    :mod:`open_clip_triplet.data.device`. When it asks for a batch it has no more need of the one before.
    rank: only rank 0 logs. reduce_device: where counts of all ranks are summed; None for one process.
    total: samples of an exact pass over the data set, else None. used: samples per epoch, all ranks.
    """

    def __init__(
        self,
        dataloader: DataLoader,
        *,
        urls: Sequence[str],
        counts: Counts,
        position: Position,
        buffers: BatchBuffers,
        finish: Callable[[Iterator], Iterator],
        num_batches: int,
        image_rows: int,
        total: int | None,
        used: int,
        rank: int = 0,
        reduce_device=None,
    ):
        self.dataloader, self.urls, self.counts, self.position = dataloader, urls, counts, position
        self.num_batches, self.num_samples = num_batches, image_rows
        self.buffers = buffers
        self._finish, self._total, self._used = finish, total, used
        self._rank, self._reduce_device = rank, reduce_device
        self._waiting_since: float | None = None
        self._last_totals: dict[str, int] = {}
        self._first = self._given = 0
        self._unreported = False

    def __len__(self) -> int:
        return self.num_batches

    @property
    def first_batch(self) -> int:
        return self.position.first_batch

    @first_batch.setter
    def first_batch(self, batch: int) -> None:
        if not 0 <= batch <= self.num_batches:
            raise ValueError(f"first_batch is {batch}; an epoch has {self.num_batches} batches")
        self.position.first_batch = batch

    def __iter__(self) -> Iterator:
        self._first = self._given = self.position.first_batch
        self._unreported = True
        stop = threading.Event()
        watch = threading.Thread(target=self._watch, args=(stop,), daemon=True)
        watch.start()
        try:
            for batch in self._finish(self.from_workers()):
                self._given += 1
                yield batch
            self.finish_epoch()
        finally:
            stop.set()
            self.position.first_batch = 0

    def finish_epoch(self) -> None:
        """Sum the counts over all ranks, and log them. Every rank must call it after the same batch.

        The end of an epoch does. Whoever leaves an epoch before calls it; a second call does nothing.
        """
        if self._unreported:
            self._unreported = False
            self._last_totals = self.counts.totals(self._reduce_device)
            if self._rank == 0:
                self._log_epoch()

    def report(self) -> dict[str, int]:
        """Counts of the last finished epoch by name, over all workers and ranks."""
        return dict(self._last_totals)

    def from_workers(self) -> Iterator:
        """Batches as they leave the workers; each is given back when the next is asked for."""
        self._waiting_since = time.monotonic()
        self.buffers.start_epoch()
        batches = iter(self.dataloader)
        while True:
            self._waiting_since = time.monotonic()
            try:
                images, texts, ticket = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise RuntimeError(
                    f"{error}. It died while the workers were reading: {self._reading()}. If the machine ran "
                    "out of memory, use fewer --workers; then continue with --resume latest."
                ) from error
            finally:
                self._waiting_since = None
            yield images, texts
            self.buffers.give_back(images, ticket)

    def _reading(self) -> str:
        shards = [f"worker {w}: {self.urls[i]}" for w, i in enumerate(self.counts.reading()) if i >= 0]
        return "; ".join(shards) or "nothing"

    def _watch(self, stop: threading.Event) -> None:
        warned = 0
        while not stop.wait(min(STALL_SECONDS / 4, 1.0)):
            since = self._waiting_since
            stalls = int((time.monotonic() - since) / STALL_SECONDS) if since else 0
            if stalls > warned:
                seconds = stalls * STALL_SECONDS
                logging.warning("No batch for %g s. Being read: %s", seconds, self._reading())
            warned = stalls

    def _log_epoch(self) -> None:
        passed_over = self._first * self._used // self.num_batches if self.num_batches else 0
        line = summary(self._last_totals, total=self._total, used=self._used, passed_over=passed_over)
        epoch, stopped = self.position.get_value(), ""
        if self._given < self.num_batches:
            stopped = f", stopped after {self._given} batches, with what was read ahead"
        logging.info("Data of epoch %d%s: %s.", epoch, stopped, line)
        if warning := too_many_dropped(self._last_totals):
            logging.warning("Data of epoch %d: %s", epoch, warning)
