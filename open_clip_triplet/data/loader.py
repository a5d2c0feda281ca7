"""The loader that OpenCLIP's training loop iterates: joins pieces to batches, keeps where the stream stands."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader, get_worker_info

from open_clip_triplet.data.counts import PassCounts, too_many_dropped
from open_clip_triplet.data.group import HostGroup
from open_clip_triplet.data.pipeline import Piece, SampleTransform, StreamPieces
from open_clip_triplet.data.state import StreamState
from open_clip_triplet.data.stream import Position
from open_clip_triplet.errors import ShardError, TripletError

#: seconds without a batch after which the shards being read are named in the log, and again each time
STALL_SECONDS = 60.0
#: parts of a pass after each of which the counts of all ranks are looked at
CHECKS_PER_PASS = 100


class PairedLoader:
    """Iterates the batches of one epoch after the other, as OpenCLIP's loop expects them, out of one stream.

    num_batches: per epoch and rank; a stretch of the stream, ``stretch`` has its length where one epoch is
    shorter. num_samples: image rows per epoch over all ranks, which is what OpenCLIP's progress line counts.

    Args:
        pieces: the data set of this rank. workers: processes that read it; 0 for none.
        state: where its streams start; kept up to date with the batches handed over.
        finish: image parts and text parts of a batch to what the loop gets.
        batch_size: samples per batch. group: all ranks, for sums. rank: only rank 0 logs.
        stopping: asked before every optimizer step; True ends the epoch there, on all ranks alike.
    """

    def __init__(
        self, pieces: StreamPieces, *, workers: int, state: StreamState, finish: Callable[[list, list], Any],
        batch_size: int, num_batches: int, group: HostGroup, rank: int, pin_memory: bool,
        stopping: Callable[[], bool],
    ):
        self.pieces, self.state, self.batch_size, self.num_batches = pieces, state, batch_size, num_batches
        self.stretch = num_batches
        self.batches_yielded = 0  #: batches handed over in this epoch
        self.stopping = stopping
        self._finish, self._group, self._rank = finish, group, rank
        self._workers = DataLoader(
            pieces, batch_size=None, num_workers=workers, pin_memory=pin_memory, worker_init_fn=_in_worker
        )
        self._batches: Iterator | None = None  # one for the whole run: workers read on between epochs
        self._waiting = _StallWatch(pieces)

    @property
    def num_samples(self) -> int:
        accumulate = self.pieces.dealing.pieces
        samples = self.num_batches // accumulate * self.pieces.dealing.global_batch
        return samples * self.pieces.transform.image_group

    def __len__(self) -> int:
        return self.num_batches

    def set_value(self, epoch: int) -> None:
        """``DataInfo.set_epoch`` calls this of its ``shared_epoch``; the stream goes on where it stands."""

    def start(self) -> None:
        """Start the workers, unless they run. It draws from torch's generator, as a DataLoader does."""
        if self._batches is None:
            self._batches = joined(self.from_workers(), self.batch_size, self.pieces.transform)

    def __iter__(self) -> Iterator:
        self.start()
        accumulate, self.batches_yielded = self.pieces.dealing.pieces, 0
        with self._waiting:
            for number in range(self.stretch):
                if number % accumulate == 0 and self._group.agreed(self.stopping()):
                    return
                images, texts, pieces = self._next()
                for piece in pieces:
                    self.state.positions[piece.stream] = Position(*piece.position)
                    self.state.counts.add(piece.stream, piece.counted)
                self.batches_yielded = number + 1
                self.state.step += self.batches_yielded % accumulate == 0
                yield self._finish(images, texts)
                if self.batches_yielded % accumulate == 0 and self.state.step % self._steps_between_checks == 0:
                    self._check_health()

    def gather(self) -> StreamState:
        """The state of the streams of all ranks; a collective call."""
        own = self.pieces.streams  # a checkpoint brings the counts of all ranks' streams
        counts = [entry for entry in self.state.counts.export() if entry[1] in own]
        gathered = self._group.gather(([self.state.positions[s] for s in own], counts))
        positions = [Position(*position) for of_rank, _ in gathered for position in of_rank]
        return StreamState(
            positions, self.state.step, PassCounts(entry for _, exported in gathered for entry in exported)
        )

    def report(self) -> StreamState:
        """Log what the passes have seen so far, and those that are over for good; a collective call."""
        state = self.gather()
        for pass_index in state.counts.passes():
            over = state.is_over(pass_index)
            if self._rank == 0:
                logging.info("Data, %s.", state.counts.line(pass_index, total=self.pieces.plan.total, whole=over))
                if warning := too_many_dropped(state.counts.totals(pass_index)):
                    logging.warning("Data, pass %d: %s", pass_index, warning)
            if over:
                state.counts.forget(pass_index)
                self.state.counts.forget(pass_index)
        return state

    def from_workers(self) -> Iterator[Piece]:
        """The pieces of this rank's streams as they leave the workers, without end."""
        self.pieces.watch.close(False)
        atexit.register(self.pieces.watch.close)  # before multiprocessing ends the workers at exit
        return _checked(iter(self._workers), self.pieces)

    def _next(self) -> tuple:
        self._waiting.since = time.monotonic()
        try:
            assert self._batches is not None
            return next(self._batches)
        except Exception:
            self._batches = None  # ends the workers
            raise
        finally:
            self._waiting.since = None

    @property
    def _steps_between_checks(self) -> int:
        total, dealing = self.pieces.plan.total, self.pieces.dealing
        steps = total // dealing.global_batch if total else self.num_batches // dealing.pieces
        return max(1, steps // CHECKS_PER_PASS)

    def _check_health(self) -> None:
        """Stop where more of a pass is bad than may be; on all ranks alike.

        Raises:
            ShardError: says how much, and why.
        """
        state, plan, limit = self.gather(), self.pieces.plan, self.pieces.max_bad
        for pass_index in state.counts.passes():
            share, tried = state.counts.bad_fraction(pass_index, plan.streams)
            early = tried < (plan.total or 100_000) / CHECKS_PER_PASS
            # of a part of a pass little is certain: a standard error and more is allowed for
            over = state.is_over(pass_index)
            margin = 0 if over else tried**-0.5 if tried else 1
            if share > limit + margin and not early:
                line = state.counts.line(pass_index, total=plan.total, whole=over)
                raise ShardError(
                    f"{share:.0%} of the training data is bad, more than --max-bad-fraction {limit}: {line}."
                )


class _StallWatch:
    """A thread that names the shards being read whenever a batch is long in coming."""

    def __init__(self, data: StreamPieces):
        self._data = data
        self.since: float | None = None

    def __enter__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __exit__(self, *exception) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        warned = 0
        while not self._over.wait(min(STALL_SECONDS / 4, 1.0)):
            since = self.since
            stalls = int((time.monotonic() - since) / STALL_SECONDS) if since else 0
            if stalls > warned:
                seconds = stalls * STALL_SECONDS
                logging.warning("No batch for %g s. Being read: %s", seconds, _reading(self._data))
            warned = stalls


# These do not know the loader: one that nobody needs any more is freed at once, and its workers with it.


def joined(
    pieces: Iterator[Piece], batch_size: int, transform: SampleTransform
) -> Iterator[tuple[list, list, list[Piece]]]:
    """Batches of so many samples as ``(image parts, text parts, the pieces that end in them)``."""
    images_per, texts_per = transform.image_group, transform.captions.rows
    images, texts, missing = [], [], batch_size
    whole: list[Piece] = []
    for piece in pieces:
        start, size = 0, 0 if piece.images is None else len(piece.images) // images_per
        while size - start >= missing:
            end = start + missing
            images.append(piece.images[start * images_per : end * images_per])
            texts.append(piece.texts[start * texts_per : end * texts_per])
            yield images, texts, [*whole, piece] if end == size else whole
            images, texts, whole, missing, start = [], [], [], batch_size, end
        if start < size:
            images.append(piece.images[start * images_per :])
            texts.append(piece.texts[start * texts_per :])
            missing -= size - start
        if start < size or size == 0:
            whole.append(piece)


def _checked(pieces: Iterator[Piece], data: StreamPieces) -> Iterator[Piece]:
    try:
        yield from pieces
    except TripletError as error:  # a worker's arrives with its traceback as the message
        raise type(error)(str(error).rstrip().rpartition(f"{type(error).__name__}: ")[2]) from None
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise RuntimeError(
            f"{error}. It died while the workers were reading: {_reading(data)}. If the machine ran "
            "out of memory, use fewer --workers; then continue with --resume latest."
        ) from error
    finally:
        data.watch.close()


def _reading(data: StreamPieces) -> str:
    at = zip(data.streams, data.watch.reading())
    return "; ".join(f"stream {s}: {data.plan.urls[i]}" for s, i in at if i >= 0) or "nothing"


def _in_worker(_worker: int) -> None:
    """A signal to the whole job ends the run after its step, and must not end its workers before; one that comes
    from the training process, when it is done with them, must."""
    info: Any = get_worker_info()
    watch = info.dataset.watch

    def caught(number: int, frame) -> None:
        if watch.closed:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, caught)
