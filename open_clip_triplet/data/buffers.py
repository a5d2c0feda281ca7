"""Shared memory that batches of images travel in, used again for a later batch."""

from __future__ import annotations

import torch
from torch.utils.data import default_collate, get_worker_info

#: buffers of a worker; those under way are two ready, one being filled and one being read
MOST = 16


class BatchBuffers:
    """Where the workers put their batches of images.

    Fresh shared memory costs a page fault for each 4 KiB: a twentieth of the time of an image. So a worker
    fills a buffer again that the training process has given back, and makes a new one only when it has none.
    Every batch must be given back: a worker that has :data:`MOST` buffers out leaves its batches to torch.

    recycle: no image of a batch is read after :meth:`give_back`. False leaves everything to torch.
    """

    def __init__(self, workers: int, *, recycle: bool):
        self.recycle = recycle
        self._free = torch.zeros(workers, MOST, dtype=torch.bool).share_memory_()
        self._buffers: list[torch.Tensor] = []  # those of this process, if it is a worker
        self._mapped: dict[tuple[int, int], torch.Tensor] = {}  # in the training process

    def start_epoch(self) -> None:
        """Forget all buffers; in a worker and in the training process. Some may have been lost on the way."""
        self._buffers.clear()
        self._mapped.clear()
        if worker := get_worker_info():
            self._free[worker.id] = False

    def stack(self, images: list[torch.Tensor]) -> tuple[torch.Tensor, tuple[int, int] | None]:
        """A batch of images, and what :meth:`give_back` wants in return."""
        worker = get_worker_info()
        if worker is None or not self.recycle:
            return default_collate(images), None
        number = self._take(worker.id, images)
        if number is None:
            return default_collate(images), None
        torch.stack(images, out=self._buffers[number])
        return self._buffers[number], (worker.id, number)

    def _take(self, worker: int, images: list[torch.Tensor]) -> int | None:
        """Number of a buffer for the batch."""
        shape = (len(images), *images[0].shape)
        for number, buffer in enumerate(self._buffers):
            if self._free[worker, number] and buffer.shape == shape:
                self._free[worker, number] = False
                return number
        if len(self._buffers) == MOST:
            return None
        self._buffers.append(torch.empty(shape, dtype=images[0].dtype).share_memory_())
        return len(self._buffers) - 1

    def give_back(self, images: torch.Tensor, ticket: tuple[int, int] | None) -> None:
        """Let a worker fill this batch's buffer again."""
        if ticket is None:
            return
        if images.is_shared():  # not a pinned copy: while it is kept, torch maps the buffer only once
            self._mapped[tuple(ticket)] = images
        self._free[tuple(ticket)] = True
