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
from open_clip_triplet.shards import IMAGE_SUFFIXES, by_role, group_samples, read_meta
from open_clip_triplet.tar import open_tar
from open_clip_triplet.tripletdata.run.sample import Sample, Stats
from open_clip_triplet.tripletdata.run.tables import Table, iter_rows

IMAGE_MEMBERS = {*IMAGE_SUFFIXES, *(f"neg.{s}" for s in IMAGE_SUFFIXES), "image", "neg_image"}


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
                size = len(os.listdir(url)) if files.is_local(url) and os.path.isdir(url) else size_of(url)
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
            key = roles["__key__"]
            if keyed is None:  # a shard that this tool wrote for this task keeps its keys
                keyed = "source_key" in meta and key.startswith(f"{self.name}_")
            if keyed and not (key > last and re.fullmatch(rf"{self.name}_\d+", key)):
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
        rows = self._table_rows(images) if self.rows else self._member_rows(images)
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

    def _member_rows(self, images: bool) -> Iterator[dict]:
        url = self.inputs[0]
        try:
            if files.is_local(url) and os.path.isdir(url):
                yield from map(_roles, _folder_samples(url, images))
                return

            def take(members, number: int, suffix: str) -> bytes | None:
                return members.read() if images or suffix not in IMAGE_MEMBERS else None

            with open_tar(url) as members:
                yield from map(_roles, group_samples(members, url, take))
        except FileNotFoundError as error:
            raise ShardError(f"{url}: no such file") from error
        except OSError as error:
            raise ShardError(f"{url}: cannot be read ({error.strerror or error})") from error

    def _table_rows(self, images: bool) -> Iterator[dict]:
        table, path = self.table or Table(), self.inputs[0]
        if not files.exists(path):
            raise ShardError(f"{path}: no such file")
        start, stop = self.rows or (0, 0)
        for number, (image, caption) in enumerate(iter_rows(path, table, start, stop), start):
            data, name = table_cell(image)
            roles: dict = {"__key__": os.path.splitext(os.path.basename(name))[0] or str(number)}
            caption = caption[0] if isinstance(caption, list) and caption else caption
            roles["text"] = str(caption or "").encode("utf-8", "replace")
            # A member of another suffix would not be read back; decoders look at the bytes, not the name.
            suffix = os.path.splitext(name)[1].lower().lstrip(".")
            roles["suffix"] = suffix if suffix in IMAGE_SUFFIXES else "jpg"
            if data is None:
                file = files.join(table.root or os.path.dirname(path), name)
                try:
                    data = files.read_bytes(file) if images else None
                    found = images or files.exists(file)
                except (OSError, ValueError):
                    found = False
                if not found:
                    roles["reason"] = "image file missing"
            if data is not None:
                roles["image"] = data
            yield roles


def table_cell(image) -> tuple[bytes | None, str]:
    """Bytes and name of a table's image: a path, bytes, or Hugging Face's ``{"bytes", "path"}``."""
    if isinstance(image, dict):
        return image.get("bytes"), str(image.get("path") or "")
    return (image, "") if isinstance(image, bytes) else (None, str(image or ""))


def _folder_samples(folder: str, images: bool) -> Iterator[dict]:
    """Samples of a folder of files, ``000000017.jpg 000000017.txt 000000017.json``, as img2dataset writes."""
    from itertools import groupby

    names = sorted(name for name in os.listdir(folder) if "." in name[1:] and not name.startswith("."))
    for key, members in groupby(names, lambda name: name.partition(".")[0]):
        sample: dict = {"__key__": key, "__url__": folder}
        for name in members:
            suffix = name.partition(".")[2].lower()
            if images or suffix not in IMAGE_MEMBERS:
                sample[suffix] = files.read_bytes(os.path.join(folder, name))
        yield sample


def _roles(raw: dict) -> dict:
    suffix = next((s for s in raw if s in IMAGE_SUFFIXES), "jpg")
    neg = next((s for s in IMAGE_SUFFIXES if f"neg.{s}" in raw), "jpg")
    return {**by_role(raw), "suffix": suffix, "neg_suffix": neg}


def _plain(roles: dict, images: bool) -> Sample:
    sample = Sample(roles["__key__"], roles["text"], neg_text=_neg_text(roles), meta=roles["meta"])
    if images:
        _fill(sample, roles)
    return sample


def _unusable(roles: dict) -> str | None:
    """Why a sample cannot be used, or None; decodes ``text`` in place."""
    if "text" not in roles:
        return "no caption"
    try:
        roles["text"] = roles["text"].decode("utf-8").replace("\0", "").strip()
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
