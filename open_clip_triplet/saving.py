"""Checkpoints that are whole or not there, the sound one among them, and a run that is asked to stop."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import torch

from open_clip_triplet.errors import CheckpointError
from open_clip_triplet.files import write_whole

#: signals that ask a run to save and go: Slurm's and every cluster's
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Whether a signal has asked this process to stop. Only the main thread can listen."""

    def __init__(self) -> None:
        self.name = ""
        self._before: dict = {}

    def __bool__(self) -> bool:
        return bool(self.name)

    def listen(self) -> None:
        if threading.current_thread() is threading.main_thread() and not self._before:
            self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}

    def close(self) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}

    def _note(self, number, frame) -> None:
        self.name = signal.Signals(number).name


def save_durably(checkpoint: dict, path: str | os.PathLike) -> None:
    """``torch.save`` that leaves either the whole file or none.

    Raises:
        OSError: the disk is full or not writable; an older checkpoint of that name is kept.
    """
    try:
        with write_whole(path) as file:
            torch.save(checkpoint, file)
    except RuntimeError as error:  # torch's zip writer reports a full disk as one
        if "DataLoader worker" in str(error):
            raise
        raise OSError(f"could not write {path}: {error}") from error


def save_or_go_on(checkpoint: dict, path: str | os.PathLike) -> bool:
    """Save; where the disk is full, say so and keep the checkpoints that there are. Whether it was saved."""
    path = Path(path)
    try:
        save_durably(checkpoint, path)
        return True
    except OSError as error:
        full = "disk full" if error.errno is None or error.errno in (27, 28, 122) else "not saved"
        logging.error(
            "%s: %s could not be written (%s). Training goes on; the last good checkpoint is kept.",
            full, path, error,
        )
    if path.name == "tmp.pt":  # OpenCLIP is about to give this file the name of the newest checkpoint
        newest = path.with_name("epoch_latest.pt")
        if newest.exists():
            os.replace(newest, path)  # there and back
        else:
            path.touch()
    return False


def interrupted_path(args, epoch: int) -> Path:
    """Where a run that stops inside an epoch saves: sorts after ``epoch_{epoch}.pt``, before the next one."""
    name = "epoch_latest" if args.save_most_recent else f"epoch_{epoch}_interrupted"
    return Path(args.checkpoint_path, f"{name}.pt")


def remove_interrupted(folder: str | os.PathLike, *names: str) -> None:
    """An epoch's own checkpoint takes the place of those inside it, and of files of these names."""
    for pattern in ("epoch_*_interrupted.pt", *names):
        for path in Path(folder).glob(pattern):
            path.unlink(missing_ok=True)


def end_remote_sync(args) -> None:
    """What OpenCLIP does at the end of a run: stop its process for ``--remote-sync``, and sync once more."""
    running = [child for child in multiprocessing.active_children() if not child.daemon]
    if args.remote_sync and running:
        from open_clip_train.file_utils import remote_sync

        for child in running:
            child.terminate()
        folders = (os.path.join(root, args.name) for root in (args.logs, args.remote_sync))
        remote_sync(*folders, args.remote_sync_protocol)


def load_sound(path: str, load: Callable[[str], dict]) -> dict:
    """``load(path)``, or the newest checkpoint beside it that can be loaded, with a warning.

    Raises:
        CheckpointError: none can.
    """
    broken: Exception | None = None
    for candidate in [path, *_older(path)]:
        try:
            checkpoint = load(candidate)
        except (OSError, RuntimeError, EOFError, ValueError, LookupError, pickle.UnpicklingError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            logging.warning("The checkpoint %s is damaged (%s).", candidate, reason)
            broken = error
            continue
        if broken:
            logging.warning("Continuing with the sound checkpoint before it, %s.", candidate)
        return checkpoint
    raise CheckpointError(
        f"no checkpoint in {os.path.dirname(path)} can be loaded ({broken}); remove the folder to start over"
    ) from broken


def _older(path: str) -> list[str]:
    """The other checkpoints of the folder that are not newer, newest first, as OpenCLIP sorts them."""
    if "://" in path:
        return []

    from open_clip_train.main import natural_key

    names = sorted(map(str, Path(path).parent.glob("epoch_*.pt")), key=natural_key, reverse=True)
    return names[names.index(path) + 1 :] if path in names else [name for name in names if name != path]
