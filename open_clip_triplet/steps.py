"""Training by steps inside OpenCLIP's loop over epochs: stop, save and continue at any step.

OpenCLIP's loop iterates ``data["train"].dataloader``. ``Batches`` stands in for that loader, so it
learns of every finished optimizer step: when the loop asks for the next batch, the last step is done.
"""

from __future__ import annotations

import logging
import os
import random
import zlib
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
        finished = self.first_batch
        if self._last_batch is not None and finished >= self._last_batch:
            return
        for batch in self._loader:
            if finished == self.first_batch:
                self._before_first()
            yield batch
            finished += 1
            self._after_batch(finished)
            if self._last_batch is not None and finished >= self._last_batch:
                # every rank cuts here, so the loader can add up its report over all of them
                getattr(self._loader, "finish_epoch", lambda: None)()
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
    """What one run knows of its steps: where it continues, how many it has made, where it stops."""

    def __init__(self, total_steps: int | None = None):
        self.total_steps = total_steps
        self.progress: dict = {}
        self.start_epoch = 0
        self._resumed: dict = {}
        self._made: int | None = None  # optimizer steps; None until the length of an epoch is known

    def resume_from(self, checkpoint) -> None:
        """Note where the checkpoint that OpenCLIP is loading stands; bare weights are no position."""
        if not isinstance(checkpoint, dict) or "epoch" not in checkpoint:
            return
        self.start_epoch = int(checkpoint["epoch"])
        entry = checkpoint.get(ENTRY)
        if isinstance(entry, dict) and entry.get("epoch") == self.start_epoch:
            self._resumed = entry
            self._made = int(entry["optimizer_steps"])

    def first_batch(self, epoch: int) -> int:
        """Batches of ``epoch`` that were trained on before the resume."""
        return int(self._resumed.get("batch", 0)) if self._resumed.get("epoch") == epoch else 0

    def check_same_plan(self, plan: dict) -> None:
        """Inside an epoch a run continues only under the plan that ordered the samples.

        Raises:
            ValueError: names what is different.
        """
        before = self._resumed.get("plan", plan)
        if not self.first_batch(self.start_epoch) or before == plan:
            return
        changed = [f"{name} was {before.get(name)!r}, is {plan.get(name)!r}" for name in plan
                   if before.get(name) != plan.get(name)]
        raise ValueError(
            f"the checkpoint stands inside epoch {self.start_epoch}, which can only be continued with the order "
            f"of samples it was begun with: {'; '.join(changed)}. Use the same settings, or --resume an "
            "epoch_N.pt, which stands between epochs."
        )

    def epochs_needed(self, steps_per_epoch: int) -> int:
        """Value of ``--epochs`` with which ``--total-steps`` are reached; the last epoch is cut."""
        first_step = self.total_steps - self._left(steps_per_epoch)
        inside = first_step - self.start_epoch * steps_per_epoch if self._resumed.get("batch") else 0
        return self.start_epoch + -(-(inside + self._left(steps_per_epoch)) // steps_per_epoch)

    def last_batch(self, first_batch: int, batches_per_epoch: int, accum_freq: int) -> int | None:
        """Batch at which ``--total-steps`` ends this epoch; None where it runs to its end."""
        if not self.total_steps:
            return None
        last = first_batch + self._left(batches_per_epoch // accum_freq) * accum_freq
        return last if last < batches_per_epoch // accum_freq * accum_freq else None

    def _left(self, steps_per_epoch: int) -> int:
        return max(0, self.total_steps - self.made(steps_per_epoch))

    def made(self, steps_per_epoch: int) -> int:
        """Optimizer steps made before the present epoch, or before the part of it that is trained now."""
        if self._made is None:
            self._made = self.start_epoch * steps_per_epoch
        return self._made

    def finish_epoch(self, entry: dict) -> None:
        self.progress = entry
        self._made = entry["optimizer_steps"]

    def start_rng(self, args, epoch: int, *, seeded: bool) -> None:
        """Random state for the first step of an epoch, or of the part of it that is left.

        Inside an epoch, where the checkpoint left it. At its start, where ``seeded``, by seed, epoch and
        rank alone, so that it does not matter whether the run was resumed there.
        """
        states = self._resumed.pop("rng", None) if self.first_batch(epoch) else None
        if states and args.rank < len(states):
            set_rng_state(states[args.rank])
        elif seeded:
            seed = zlib.crc32(f"{args.seed}/{epoch}/{args.rank}".encode())
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)

    def entry(self, args, method, epoch: int, batch: int, steps: int, *, plan: dict, with_rng: bool) -> dict:
        """The plugin's entry of a checkpoint: position, counts of what was seen, random state.

        ``epoch`` and ``batch`` say where training continues; ``steps`` is all optimizer steps made;
        counts are over all ranks.
        """
        samples = steps * args.accum_freq * args.batch_size * args.world_size
        entry = {
            "loss": args.loss, "epoch": epoch, "batch": batch, "optimizer_steps": steps,
            "samples_seen": samples,
            "images_seen": samples * method.image_group(args.neg_captions),
            "captions_seen": samples * method.text_group(args.neg_captions),
            "plan": plan,
        }
        if with_rng:
            entry["rng"] = all_rng_states()
        return entry


def data_plan(args, batches_per_epoch: int) -> dict:
    """What the order of samples within an epoch depends on."""
    names = (
        "train_data", "train_num_samples", "dataset_resampled", "train_data_upsampling_factors",
        "batch_size", "accum_freq", "world_size", "workers", "seed",
    )
    return {**{name: getattr(args, name, None) for name in names}, "batches_per_epoch": batches_per_epoch}


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
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, RuntimeError):  # torch's zip writer reports a full disk as one
            raise OSError(f"could not write {path}: {error}") from error
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
