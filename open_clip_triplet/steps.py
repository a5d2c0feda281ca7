"""Training by steps inside OpenCLIP's loop over epochs: stop, save and continue at any step.

OpenCLIP's loop iterates ``data["train"].dataloader``. ``Batches`` stands in for that loader, so it
learns of every finished optimizer step: when the loop asks for the next batch, the last step is done.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

#: key of the plugin's entry in a checkpoint
ENTRY = "triplet"


class Batches:
    """OpenCLIP's train loader for one epoch, cut to ``[first_batch, last_batch)``.

    Args:
        loader: yields batches from ``first_batch`` on (our loader starts there itself).
        first_batch: batches of this epoch already trained on.
        last_batch: batches after which the epoch ends, ``None`` for all.
        after_batch: called with the number of batches finished in this epoch.
        before_first: called once the workers are up, before the first batch is handed over.
    """

    def __init__(
        self, loader, first_batch: int, last_batch: int | None,
        after_batch: Callable[[int], None], before_first: Callable[[], None],
    ):
        self._loader = loader
        self.first_batch = first_batch
        self._last_batch = last_batch
        self._after_batch = after_batch
        self._before_first = before_first

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator:
        batches = iter(self._loader)
        finished = self.first_batch
        if self._last_batch is not None and finished >= self._last_batch:
            return
        for batch in batches:
            if finished == self.first_batch:
                self._before_first()
            yield batch
            finished += 1
            self._after_batch(finished)
            if self._last_batch is not None and finished >= self._last_batch:
                return


def rng_state() -> dict:
    """State of this process's random generators, in types that ``weights_only`` loading accepts."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    state = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict) -> None:
    """Put the generators back as ``rng_state`` found them."""
    torch.set_rng_state(state["torch"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def all_rng_states() -> list[dict]:
    """``rng_state`` of every rank, in rank order, on every rank."""
    if not (dist.is_available() and dist.is_initialized()):
        return [rng_state()]
    states: list = [None] * dist.get_world_size()
    dist.all_gather_object(states, rng_state())
    return states


class StepControl:
    """What one run knows of its steps: where it continues, where it stops, when it saves."""

    def __init__(self, total_steps: int | None = None):
        self.total_steps = total_steps
        self.resumed: dict = {}
        self.progress: dict = {}

    def resume_from(self, checkpoint: dict) -> None:
        """Take the plugin's entry of the checkpoint that OpenCLIP is loading."""
        entry = checkpoint.get(ENTRY) if isinstance(checkpoint, dict) else None
        if isinstance(entry, dict) and "epoch" in checkpoint:
            self.resumed = entry

    def epoch_limits(self, args, epoch: int, batches_per_epoch: int) -> tuple[int, int | None]:
        """First and last batch of this epoch under ``--resume`` and ``--total-steps``."""
        first = int(self.resumed.get("batch", 0)) if self.resumed.get("epoch") == epoch else 0
        last = None
        if self.total_steps:
            steps_per_epoch = batches_per_epoch // args.accum_freq
            left = self.total_steps - steps_per_epoch * epoch
            if left < steps_per_epoch:
                last = left * args.accum_freq
        return first, last

    def restore_rng(self, args) -> None:
        """Once after a resume: the generators go on where the checkpoint left them."""
        states = self.resumed.pop("rng", None)
        if states and args.rank < len(states):
            set_rng_state(states[args.rank])

    def entry(self, args, method, epoch: int, batches_per_epoch: int, batch: int, *, with_rng: bool) -> dict:
        """The plugin's entry of a checkpoint: position, counts of what was seen, random state.

        ``epoch`` and ``batch`` say where training continues; counts are over all ranks.
        """
        steps = (epoch * (batches_per_epoch // args.accum_freq)) + batch // args.accum_freq
        samples = steps * args.accum_freq * args.batch_size * args.world_size
        entry = {
            "loss": args.loss, "epoch": epoch, "batch": batch, "optimizer_steps": steps,
            "samples_seen": samples,
            "images_seen": samples * method.image_group(args.neg_captions),
            "captions_seen": samples * method.text_group(args.neg_captions),
        }
        if with_rng:
            entry["rng"] = all_rng_states()
        return entry


def describe_progress(entry: dict) -> str:
    return (
        f"{entry['optimizer_steps']:,} optimizer steps: {entry['samples_seen']:,} samples seen, "
        f"{entry['images_seen']:,} images and {entry['captions_seen']:,} captions encoded"
    )


def save_durably(checkpoint: dict, path: str | os.PathLike) -> None:
    """``torch.save`` that leaves either the whole file or none: temporary name, fsync, rename.

    Raises:
        OSError: the disk is full or not writable; an older checkpoint of that name is kept.
    """
    path = Path(path)
    # not .pt: OpenCLIP's `--resume latest` takes any *.pt
    temporary = path.with_name(f"{path.name}.partial")
    try:
        with open(temporary, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def step_checkpoint_path(args, epoch: int, step: int) -> Path:
    """Where a mid-epoch checkpoint goes: sorts after ``epoch_{epoch}.pt`` and before the next epoch's."""
    folder = Path(args.checkpoint_path)
    return folder / ("epoch_latest.pt" if args.save_most_recent else f"epoch_{epoch}_step_{step}.pt")


def remove_other_step_checkpoints(path: Path) -> None:
    """Keep one mid-epoch checkpoint, the newest; epoch checkpoints are OpenCLIP's to keep."""
    for other in path.parent.glob("epoch_*_step_*.pt"):
        if other != path:
            other.unlink(missing_ok=True)
            logging.debug(f"Removed {other}.")
