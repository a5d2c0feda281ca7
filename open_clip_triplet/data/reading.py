"""Samples of shards as encoded bytes, from files, urls and pipes: ranges, retries, failures by reason."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any

import torch

from open_clip_triplet.data.stream import ShardSlice
from open_clip_triplet.errors import MembersMissing, ShardError
from open_clip_triplet.files import is_remote
from open_clip_triplet.shards import FIELDS, read_samples, rename_members
from open_clip_triplet.tar import TarMembers

#: attempts after the first to read a remote shard, counted anew after every sample that comes through
RETRIES = 5
#: seconds before the first of them; doubled every time
BACK_OFF = 1.0


class ShardWatch:
    """What the workers of a rank are reading, and which shards they gave up, in memory they share.

    A shard that cannot be opened is given up once a pass, by whichever worker meets it first, and the log
    has one line on it.
    """

    def __init__(self, streams: int, shards: int):
        self._reading = torch.full((streams,), -1, dtype=torch.int64).share_memory_()
        self._given_up = torch.zeros(shards, dtype=torch.int64).share_memory_()
        self._closed = torch.zeros(1, dtype=torch.bool).share_memory_()

    def close(self, closed: bool = True) -> None:
        """Whether the training process needs its workers no more."""
        self._closed.fill_(closed)

    @property
    def closed(self) -> bool:
        return bool(self._closed)

    def set_reading(self, stream: int, shard: int) -> None:
        self._reading[stream] = shard

    def reading(self) -> list[int]:
        """The number of the shard that each stream of this rank is at; -1 for none."""
        return self._reading.tolist()

    def gave_up(self, shard: int, pass_index: int) -> bool:
        """In this pass, or in a later one where another stream is already."""
        return int(self._given_up[shard]) > pass_index

    def retries(self, shard: int) -> int:
        """One that was given up in an earlier pass gets a single second chance."""
        return 1 if int(self._given_up[shard]) else RETRIES

    def give_up(self, shard: int, pass_index: int, error: Exception) -> None:
        if not self.gave_up(shard, pass_index):
            self._given_up[shard] = pass_index + 1
            logging.warning("%s; given up for pass %d", error, pass_index)


def read_shard(
    url: str, fields: Container[str], names: Mapping[str, str] = FIELDS,
    skip: Callable[[int], bool] = lambda index: False,
) -> Iterator[tuple[int, dict]]:
    """(index, sample) of one shard under field names; only ``fields`` are read.

    Indices that ``skip`` are yielded with their key alone. names: member suffix to field.
    """

    def take(members: TarMembers, index: int, suffix: str) -> bytes | None:
        return members.read() if names.get(suffix) in fields and not skip(index) else None

    for index, sample in enumerate(read_samples(url, take)):
        yield index, rename_members(sample, names)


def read_slice(
    part: ShardSlice, wanted: Callable[[int], bool], *, pass_index: int, watch: ShardWatch, fields: Container[str],
    names: Mapping[str, str] = FIELDS,
) -> Iterator[tuple[int, dict | str | None]]:
    """(index, sample) of every index of a slice, ascending, each exactly once; None for unwanted ones.

    A remote shard that fails is opened again, after a pause, and continued at the sample that was
    being read; not where the server says that it is not there. In place of what cannot be read comes the
    reason; where the size is unknown, one stands for all that is lost.
    """
    def skip(found: int) -> bool:
        return found < index or not wanted(found)

    index, attempts, opened, surplus = part.first, 0, False, 0
    reason = "damaged shard" if watch.gave_up(part.shard, pass_index) else ""
    while not reason:
        try:
            for found, sample in read_shard(part.url, fields, names, skip):
                opened = True
                if part.last is not None and found >= part.last:
                    surplus = found + 1 - part.last
                elif found >= index:
                    index, attempts = found + 1, 0
                    yield found, sample if wanted(found) else None
                if part.last is not None and index >= part.last < (part.size or 0):
                    return
            reason = "shard shorter than sizes.json"
        except (OSError, ShardError) as error:
            if index == part.last:  # everything wanted has come through
                break
            if is_remote(part.url) and not _is_final(error) and attempts < watch.retries(part.shard):
                pause(error, attempts)
                attempts += 1
                continue
            reason = "damaged shard"
            if opened:
                logging.warning("%s; given up from sample %d on for pass %d", error, index, pass_index)
            else:
                watch.give_up(part.shard, pass_index, error)
    if surplus:
        logging.warning("%s: skipped %d samples that are not in sizes.json, in pass %d", part.url, surplus, pass_index)
    if part.last is None:
        if reason == "damaged shard":
            yield index, reason
        return
    for lost in range(index, part.last):
        yield lost, reason if wanted(lost) else None


def with_retries(work: Callable[[], Any], url: str) -> Any:
    """Do what reads ``url``; where that is remote and fails, again after growing pauses."""
    for attempts in range(RETRIES + 1):
        try:
            return work()
        except (OSError, ShardError) as error:
            final = isinstance(error, MembersMissing) or _is_final(error)
            if not is_remote(url) or final or attempts == RETRIES:
                raise
            pause(error, attempts)


def pause(error: Exception, attempts: int) -> None:
    seconds = BACK_OFF * 2**attempts
    logging.warning("%s; attempt %d of %d in %g s", error, attempts + 1, RETRIES, seconds)
    time.sleep(seconds)


def _is_final(error: Exception) -> bool:
    """Asking again will not help."""
    return isinstance(error, (FileNotFoundError, PermissionError))
