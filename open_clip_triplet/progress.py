"""Optimizer steps among OpenCLIP's epochs: how many an epoch makes, and what a checkpoint keeps of them."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass

from open_clip_triplet.losses.options import dashed

#: key of the plugin's state in a checkpoint
STATE_KEY = "triplet"


@dataclass(frozen=True)
class Schedule:
    """Which optimizer steps each epoch makes.

    per_epoch: steps of a whole epoch. total, epochs: as the user has given them, ``--epochs`` only beside
    ``--total-steps``. offset: how far a run is ahead of so many steps an epoch, having been resumed with another batch
    size or length.

    >>> schedule = Schedule(per_epoch=9, total=10, epochs=3)
    >>> [schedule.boundary(epoch) for epoch in range(4)]
    [0, 3, 6, 10]
    """

    per_epoch: int
    total: int | None = None
    epochs: int | None = None
    offset: int = 0

    def boundary(self, epoch: int) -> int:
        """Optimizer steps made when so many epochs are over."""
        if self.total and self.epochs:
            return min(epoch, self.epochs) * self.total // self.epochs
        steps = self.offset + epoch * self.per_epoch
        return min(steps, self.total) if self.total else steps

    def epochs_needed(self) -> int:
        """Value of ``--epochs`` with which ``--total-steps`` are reached."""
        return self.epochs or -((self.offset - (self.total or 0)) // self.per_epoch)

    @property
    def reported(self) -> int:
        """Steps of an epoch as OpenCLIP's log counts them: those of the longest."""
        if self.total is None:
            return self.per_epoch
        return -(-self.total // self.epochs) if self.epochs else min(self.per_epoch, self.total)


class Progress:
    """What one run knows of its steps: how many were made, before it and by it, and out of which samples."""

    def __init__(self) -> None:
        self.start_epoch = 0
        self.saved: dict = {}  # the plugin's state in the checkpoint that was resumed
        self.state: dict = {}  # the one to put into the next checkpoint
        self.schedule = Schedule(per_epoch=1)
        self.optimizer_steps = self.samples = self.images = self.captions = 0
        self.into_epoch = 0  # steps of the present epoch that an earlier process made
        self.step_offset = 0  # of OpenCLIP's count of steps, which takes all epochs for equal

    def resume_from(self, checkpoint) -> None:
        """Note where the checkpoint that OpenCLIP is loading stands; bare weights are no position."""
        if not isinstance(checkpoint, dict) or "epoch" not in checkpoint:
            return
        self.start_epoch = int(checkpoint["epoch"])
        saved = checkpoint.get(STATE_KEY)
        if isinstance(saved, dict) and "optimizer_steps" in saved:
            self.saved = saved

    def plan(self, args, batches_per_epoch: int) -> None:
        """Lay out the steps of the run, once the length of an epoch is known; sets ``args.epochs``."""
        per_epoch = batches_per_epoch // args.accum_freq
        self.optimizer_steps = int(self.saved.get("optimizer_steps", self.start_epoch * per_epoch))
        self.samples = int(self.saved.get("samples_seen", self.optimizer_steps * global_batch(args)))
        self.images = int(self.saved.get("images_seen", 0))
        self.captions = int(self.saved.get("captions_seen", 0))
        before = int(self.saved.get("flags", {}).get("global batch", global_batch(args)))
        self.into_epoch = int(self.saved.get("into_epoch", 0)) * before // global_batch(args)
        if self.saved.get("batch"):
            logging.warning(
                "The checkpoint is of version 0.1 and is mid-epoch, and its order cannot be continued: "
                "that epoch's data starts over, the steps and the schedule go on."
            )
        self.schedule = Schedule(
            per_epoch, args.total_steps, args.epochs if args.epochs_given else None,
            self.optimizer_steps - self.into_epoch - self.start_epoch * per_epoch,
        )
        if args.total_steps:
            args.epochs = self.schedule.epochs_needed()

    def start_epoch_steps(self, args, epoch: int) -> int:
        """Steps that this epoch is still to make."""
        self.step_offset = self.into_epoch
        if args.total_steps:
            self.step_offset = self.optimizer_steps - self.schedule.reported * epoch
        return max(0, self.schedule.boundary(epoch + 1) - self.optimizer_steps)

    def finish_epoch(self, args, steps: int, rows: tuple[int, int], *, stopped: bool, stream: dict | None) -> None:
        """Add the steps of an epoch, and make the state that goes into its checkpoint.

        rows: images and captions of a sample. stopped: it was left early, and goes on in another process.
        """
        samples = steps * global_batch(args)
        self.optimizer_steps += steps
        self.samples += samples
        self.images += samples * rows[0]
        self.captions += samples * rows[1]
        self.into_epoch = self.into_epoch + steps if stopped else 0
        self.state = {
            "optimizer_steps": self.optimizer_steps, "samples_seen": self.samples, "images_seen": self.images,
            "captions_seen": self.captions, "into_epoch": self.into_epoch, "flags": meaning(args),
        }
        if stream is not None:
            self.state["stream"] = stream

    def describe(self) -> str:
        return (
            f"{self.optimizer_steps:,} optimizer steps: {self.samples:,} samples seen, "
            f"{self.images:,} images and {self.captions:,} captions encoded"
        )

    def warn_of_changes(self, args) -> None:
        """Say which flags that change what is trained differ from the checkpoint's."""
        before, now = self.saved.get("flags", {}), meaning(args)
        changed = [f"{name} was {before[name]}, is {now[name]}" for name in now
                   if name in before and before[name] != now[name]]
        if changed:
            logging.warning("Other flags than the checkpoint's: %s.", "; ".join(changed))


class CutLoader:
    """A stock loader cut to so many batches an epoch, or begun again until it has given as many."""

    def __init__(self, loader, batches: int, num_batches: int):
        self._loader, self._batches = loader, batches
        self.num_batches = num_batches
        self.batches_yielded = 0

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator:
        endless = itertools.chain.from_iterable(itertools.repeat(self._loader))
        for batch in itertools.islice(endless, self._batches):
            self.batches_yielded += 1
            yield batch


def global_batch(args) -> int:
    """Samples of one optimizer step."""
    return args.batch_size * args.world_size * args.accum_freq


def meaning(args) -> dict:
    """The flags that change what is trained, as ``--flag`` to text."""
    # but --train-data: the stream knows the data, wherever it lies
    names = *args.own_meaning, "text_key", "image_key", "json_text_key", "aug_cfg", "siglip"
    found = {dashed(name): str(getattr(args, name)) for name in names if hasattr(args, name)}
    return {**found, "global batch": str(global_batch(args))}
