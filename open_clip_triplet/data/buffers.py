"""Shared memory that batches of images travel in, used again for a later batch."""

from __future__ import annotations

from multiprocessing import Pipe

import torch
from torch.utils.data import default_collate, get_worker_info


class BatchBuffers:
    """Where the workers put their batches of images.

    Fresh shared memory costs a page fault for each 4 KiB, in the worker and in the training process: a
    twentieth of the time of an image. So a worker fills a buffer again that the training process has given
    back, and makes a new one only when it has none. There are as many as batches under way.

    recycle: no image of a batch is read after :meth:`give_back`. False leaves everything to torch.
    """

    def __init__(self, workers: int, *, recycle: bool):
        self.recycle = recycle
        self._pipes = [Pipe(duplex=False) for _ in range(workers)]  # numbers of buffers, to each worker
        self._buffers: dict[int, torch.Tensor] = {}  # those of this process, if it is a worker
        self._made = 0
        self._mapped: dict[tuple[int, int], torch.Tensor] = {}  # all, in the training process

    def start_epoch(self) -> None:
        """Forget all buffers; in a worker and in the training process. Some may have been lost on the way."""
        self._buffers.clear()
        self._mapped.clear()

    def stack(self, images: list[torch.Tensor]) -> tuple[torch.Tensor, tuple[int, int] | None]:
        """A batch of images, and what :meth:`give_back` wants in return."""
        worker = get_worker_info()
        if worker is None or not self.recycle:
            return default_collate(images), None
        number, buffer = self._free(worker.id, (len(images), *images[0].shape), images[0].dtype)
        torch.stack(images, out=buffer)
        return buffer, (worker.id, number)

    def _free(self, worker: int, shape: tuple, dtype: torch.dtype) -> tuple[int, torch.Tensor]:
        returned, _ = self._pipes[worker]
        while returned.poll():
            number = int(returned.recv_bytes())
            buffer = self._buffers.get(number)  # None: from an epoch that was left early
            if buffer is not None and buffer.shape == shape:
                return number, buffer
        self._made += 1
        buffer = self._buffers[self._made] = torch.empty(shape, dtype=dtype).share_memory_()
        return self._made, buffer

    def give_back(self, images: torch.Tensor, ticket: tuple[int, int] | None) -> None:
        """Let a worker fill this batch's buffer again."""
        if ticket is None:
            return
        worker, number = ticket
        if images.is_shared():  # not a pinned copy: while it is kept, torch maps the buffer only once
            self._mapped[worker, number] = images
        self._pipes[worker][1].send_bytes(b"%d" % number)
