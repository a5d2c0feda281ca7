"""One shard's worth of work, and how its samples are read.

A task is one input shard (or a run of rows of a table, or a folder of files), joined by key with the
side shards that earlier stages of a build wrote for it. Its number names the output shard.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace

from open_clip_triplet import files
from open_clip_triplet.errors import ShardError
from open_clip_triplet.shards import read_meta
from open_clip_triplet.tripletdata.run.members import member_rows, one_line, table_rows
from open_clip_triplet.tripletdata.run.sample import Sample, Stats, key_order
from open_clip_triplet.tripletdata.run.tables import Table


@dataclass(frozen=True)
class Policy:
    """What to do about damage and drops. The bytes made from a sound shard do not depend on it.

    Args:
        max_drop: share of a shard's samples, 0 to 1; a shard that drops more fails.
        salvage: keep what a damaged shard holds before the damage.
        redo: reasons whose dropped samples are asked for again; () means all, None none.
    """

    max_drop: float = 1.0
    salvage: bool = False
    redo: tuple[str, ...] | None = None


@dataclass(frozen=True)
class ShardTask:
    """``inputs``: the source first, then side shards to join by key; ``source``: its name in the plan;
    ``skip``: keys that are settled; ``mine``: False where another part of the run works it.
    """

    index: int
    inputs: tuple[str, ...]
    rows: tuple[int, int] | None = None
    table: Table | None = None
    source: str = ""
    policy: Policy = Policy()
    skip: frozenset[str] = frozenset()
    mine: bool = True
    _read_ahead: tuple | None = field(default=None, compare=False, repr=False)

    @property
    def name(self) -> str:
        return f"{self.index:05d}"

    @property
    def shard(self) -> str:
        return f"{self.name}.tar"

    @property
    def origin(self) -> str:
        """What it is made from, for messages."""
        return self.inputs[0] if self.inputs else self.source

    def beside(self, *sides: str) -> ShardTask:
        """The same task with side shards to join."""
        return replace(self, inputs=(*self.inputs, *sides))

    def on(self, shard: str) -> ShardTask:
        """The same task reading a shard that an earlier stage made for it."""
        return replace(self, inputs=(shard,), rows=None, table=None)

    def identity(self, size_of: Callable[[str], int] = files.size_of) -> list[dict]:
        """Name and size of every input, and how a table is read: a record remembers, so that a swap is
        noticed.

        Raises:
            ShardError: an input is missing.
        """
        found: list[dict] = []
        for url in self.inputs:
            if url.startswith("pipe:"):  # the command may hold a password
                found.append({"name": f"pipe-{hashlib.sha256(url.encode()).hexdigest()[:12]}"})
                continue
            try:
                size = len(os.listdir(url)) if not files.is_remote(url) and os.path.isdir(url) else size_of(url)
            except OSError as error:
                raise ShardError(f"{url}: cannot be read ({error.strerror or error})") from error
            found.append({"name": os.path.basename(url), "bytes": size})
        if self.rows and found:
            found[0]["rows"] = list(self.rows)
            found[0]["table"] = asdict(self.table or Table())
        return found

    def read_ahead(self) -> ShardTask:
        """A task whose captions are in memory; reading them again costs no input.

        Raises:
            ShardError: as :meth:`samples`.
        """
        stats = Stats()
        samples = list(self.samples(stats, images=False))
        return replace(self, _read_ahead=(samples, stats))

    def samples(self, stats: Stats, *, images: bool = True) -> Iterator[Sample]:
        """The task's samples with their output keys, in order; what cannot be used is dropped by reason.

        Args:
            images: False leaves images unread, which keeps a whole shard's captions small in memory.

        Raises:
            ShardError: an input is missing or damaged.
        """
        if self._read_ahead and not images:
            samples, counted = self._read_ahead
            stats.add(counted)
            yield from map(replace, samples)
            return
        if len(self.inputs) == 1:
            for raw in self._raw(stats, images):
                yield _plain(raw, images)
            return
        # The last input decides which samples there are: earlier stages have counted their drops.
        others, last = self.inputs[:-1], self.inputs[-1]
        first = replace(self, inputs=others[:1], skip=frozenset())
        sides = [replace(first.on(url), policy=Policy()) for url in others[1:]]
        streams = [task._raw(Stats(), images) for task in (first, *sides)]
        for raw in replace(self.on(last), policy=Policy())._raw(stats, images):
            sample = _plain(raw, images)
            matches = []
            for stream in streams:
                match = next((roles for roles in stream if roles["__key__"] == sample.key), None)
                if match is None:
                    raise ShardError(
                        f"{others[0]}: has no sample {sample.key!r}; it changed since {last} was made"
                    )
                matches.append(match)
            for match in reversed(matches) if images else ():  # a later stage's image before an earlier one's
                _fill(sample, match)
            yield sample

    def _raw(self, stats: Stats, images: bool) -> Iterator[dict]:
        """Samples under role names, ``text`` decoded, ``meta`` parsed, ``__key__`` the output key."""
        keyed, last = None, ""
        for ordinal, roles in enumerate(self._rows(stats, images)):
            reason = roles.pop("reason", None) or _unusable(roles)
            meta = roles["meta"] = read_meta(roles)
            key = roles["input_key"] = roles["__key__"]
            if keyed is None:  # a shard that this tool wrote for this task keeps its keys
                keyed = "source_key" in meta and key.startswith(f"{self.name}_")
            if keyed and not (key_order(key) > key_order(last) and re.fullmatch(rf"{self.name}_\d+", key)):
                reason = reason or "repeated key"
            output_key = key if keyed else f"{self.name}_{ordinal:06d}"
            if output_key in self.skip:
                last = output_key
                continue
            stats.read += 1
            if reason:
                stats.drop(reason, output_key)
                continue
            if not keyed:
                roles["__key__"] = output_key
                meta.setdefault("source_key", key)
                captions = meta.get("captions")
                if not (isinstance(captions, list) and captions):
                    meta["captions"] = [roles["text"]]
            last = output_key
            yield roles

    def _rows(self, stats: Stats, images: bool) -> Iterator[dict]:
        """Samples under role names, as they are. A damaged shard ends early where that is the policy."""
        if self.rows:
            rows = table_rows(self.inputs[0], self.table or Table(), self.rows, images)
        else:
            rows = member_rows(self.inputs[0], images)
        number = 0
        try:
            for roles in rows:
                number += 1
                yield roles
        except ShardError as error:
            if not (self.policy.salvage and number):
                raise
            stats.salvaged = str(error)
            stats.count("damaged shards cut short")


def _plain(roles: dict, images: bool) -> Sample:
    sample = Sample(
        roles["__key__"], roles["text"], neg_text=_neg_text(roles), meta=roles["meta"], input_key=roles["input_key"]
    )
    if images:
        _fill(sample, roles)
    return sample


def _unusable(roles: dict) -> str | None:
    """Why a sample cannot be used, or None; decodes ``text`` in place."""
    if "text" not in roles:
        return "no caption"
    try:
        roles["text"] = one_line(roles["text"].decode("utf-8"))
    except UnicodeDecodeError:
        return "caption is not UTF-8"
    return None if roles["text"] else "empty caption"


def _neg_text(roles: dict) -> str | None:
    return roles["neg_text"].decode("utf-8", "replace") if "neg_text" in roles else None


def _fill(sample: Sample, roles: dict) -> None:
    """Take from ``roles`` the images that ``sample`` lacks; no negative image of another negative caption."""
    if sample.image is None and "image" in roles:
        sample.image, sample.suffix = roles["image"], roles.get("suffix", "jpg")
    if sample.neg_image is None and "neg_image" in roles and _neg_text(roles) == sample.neg_text:
        sample.neg_image, sample.neg_suffix = roles["neg_image"], roles.get("neg_suffix", "jpg")
