"""Samples of shards as encoded bytes, from files, urls and pipes: ranges, retries, failures by reason."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass

from open_clip_triplet.data.captions import require_negatives
from open_clip_triplet.data.epochs import Part
from open_clip_triplet.errors import MembersMissing, ShardError
from open_clip_triplet.files import is_remote
from open_clip_triplet.shards import ROLES, by_role, group_samples, require_roles
from open_clip_triplet.tar import TarMembers, open_tar

#: attempts after the first to read a remote shard, counted anew after every sample that comes through
RETRIES = 5
#: seconds before the first of them; doubled every time
BACK_OFF = 1.0
#: local shards of a source whose first samples are looked at before training
SHARDS_CHECKED = 64


@dataclass(frozen=True)
class Unreadable:
    """Stands in for a sample that cannot be read; ``reason`` is one of ``counts.DROPPED``."""

    reason: str


def read_shard(url: str, roles: Container[str], skip: Callable[[int], bool]) -> Iterator[tuple[int, dict]]:
    """(index, sample) of one shard under role names; only ``roles`` are read.

    Indices that ``skip`` are yielded with their key alone.
    """

    def take(members: TarMembers, index: int, suffix: str) -> bytes | None:
        return members.read() if ROLES.get(suffix) in roles and not skip(index) else None

    with open_tar(url) as members:
        for index, sample in enumerate(group_samples(members, url, take)):
            yield index, by_role(sample)


def read_part(
    part: Part, roles: Container[str], wanted: Callable[[int], bool], note: Callable[[str], None]
) -> Iterator[tuple[int, dict | Unreadable | None]]:
    """(index, sample) of every index of a part, ascending, each exactly once; None for unwanted samples.

    A remote shard that fails is opened again, after a pause, and continued at the sample that was
    being read. What cannot be read comes as :class:`Unreadable`. Where the size is unknown and the
    shard damaged, one stands for all that is lost. ``note`` is told of samples that sizes.json lacks.
    """
    position, attempts, reason = part.first, 0, "shard shorter than sizes.json"
    while True:
        try:
            for index, sample in read_shard(part.url, roles, _behind_or_not(wanted, position)):
                if part.last is not None and index >= part.last:
                    note("not in sizes.json")
                elif index >= position:
                    position, attempts = index + 1, 0
                    yield index, sample if wanted(index) else None
                if part.last is not None and position >= part.last < (part.size or 0):
                    return
            break
        except (OSError, ShardError) as error:
            if position == part.last:  # everything wanted has come through
                return
            if not is_remote(part.url) or attempts >= RETRIES:
                logging.warning("%s (at sample %d; the rest is skipped)", error, position)
                reason = "damaged shard"
                break
            _pause(error, attempts)
            attempts += 1
    if part.last is None:
        if reason == "damaged shard":
            yield position, Unreadable(reason)
        return
    for index in range(position, part.last):
        yield index, Unreadable(reason) if wanted(index) else None


def _pause(error: Exception, attempts: int) -> None:
    pause = BACK_OFF * 2**attempts
    logging.warning("%s; attempt %d of %d in %g s", error, attempts + 1, RETRIES, pause)
    time.sleep(pause)


def check_source(urls: Sequence[str], roles: Iterable[str], *, negatives: int, reader: str) -> None:
    """Check the first samples of a source's first shard, and of its local shards: all, or evenly spaced.

    A later shard that cannot be read is only warned of: training counts what it loses there.

    Raises:
        MembersMissing: a shard lacks ``roles``, or ``negatives`` different negative captions.
        ShardError: the first shard cannot be read.
    """

    def check(url: str) -> None:
        require_roles(url, roles, reader=reader)
        if negatives > 1:
            require_negatives(url, negatives, reader=reader)

    for attempts in range(RETRIES + 1):
        try:
            check(urls[0])
            break
        except MembersMissing:
            raise
        except ShardError as error:
            if not is_remote(urls[0]) or attempts == RETRIES:
                raise
            _pause(error, attempts)
    local = [url for url in urls[1:] if not is_remote(url)]
    for url in local[:: max(1, -(-len(local) // SHARDS_CHECKED))]:
        try:
            check(url)
        except MembersMissing:
            raise
        except ShardError as error:
            logging.warning("%s", error)


def _behind_or_not(wanted: Callable[[int], bool], position: int) -> Callable[[int], bool]:
    return lambda index: index < position or not wanted(index)
