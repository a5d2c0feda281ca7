"""One shard's worth of work, and how its samples are read.

A task is one input shard (or a run of rows of a csv, tsv or parquet table), joined by key with the
side shards that earlier stages of a build wrote for it. Its number names the output shard.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from open_clip_triplet.errors import ShardError
from open_clip_triplet.shards import IMAGE_SUFFIXES, by_role, read_meta, read_samples
from open_clip_triplet.tripletdata.run.sample import Sample, Stats
from open_clip_triplet.tripletdata.run.tables import Table, read_table


@dataclass(frozen=True)
class ShardTask:
    """One shard's worth of work. ``inputs``: the source first, then side shards to join by key."""

    index: int
    inputs: tuple[str, ...]
    rows: tuple[int, int] | None = None
    table: Table | None = None

    @property
    def name(self) -> str:
        return f"{self.index:05d}"

    @property
    def shard(self) -> str:
        return f"{self.name}.tar"

    def identity(self) -> list[dict]:
        """Name and size of every input file, and how a table is read: a record remembers, so that a swap
        is noticed.

        Raises:
            ShardError: an input is missing.
        """
        found = []
        for path in self.inputs:
            try:
                found.append({"name": os.path.basename(path), "bytes": os.path.getsize(path)})
            except OSError as error:
                raise ShardError(f"{path}: cannot be read ({error.strerror})") from error
        if self.rows:
            found[0]["rows"] = list(self.rows)
            found[0]["table"] = asdict(self.table or Table())
        return found

    def samples(self, stats: Stats, *, images: bool = True) -> Iterator[Sample]:
        """The task's samples with their output keys, in order; what cannot be used is dropped by reason.

        Args:
            images: False leaves images out, which keeps a whole shard's captions small in memory.

        Raises:
            ShardError: an input is missing or damaged.
        """
        if len(self.inputs) == 1:
            for raw in self._raw(stats):
                yield self._plain(raw, images)
            return
        # The last input decides which samples there are: earlier stages have counted their drops.
        others, last = self.inputs[:-1], self.inputs[-1]
        first = ShardTask(self.index, others[:1], self.rows, self.table)
        streams = [u._raw(Stats()) for u in (first, *(ShardTask(self.index, (o,)) for o in others[1:]))]
        for raw in ShardTask(self.index, (last,))._raw(stats):
            sample = self._plain(raw, images)
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

    def _plain(self, roles: dict, images: bool) -> Sample:
        sample = Sample(roles["__key__"], roles["text"], neg_text=_neg_text(roles), meta=roles["meta"])
        if images:
            _fill(sample, roles)
        return sample

    def _raw(self, stats: Stats) -> Iterator[dict]:
        """Samples under role names, ``text`` decoded, ``meta`` parsed, ``__key__`` the output key."""
        if not os.path.exists(self.inputs[0]):
            raise ShardError(f"{self.inputs[0]}: no such file")
        rows = self._table_rows() if self.rows else self._shard_rows()
        keyed, last = None, ""
        for ordinal, roles in enumerate(rows):
            stats.read += 1
            reason = roles.pop("reason", None) or _unusable(roles)
            meta = roles["meta"] = read_meta(roles)
            key = roles["__key__"]
            if keyed is None:  # a shard that this tool wrote for this task keeps its keys
                keyed = "source_key" in meta and key.startswith(f"{self.name}_")
            if keyed and not (key > last and re.fullmatch(rf"{self.name}_\d+", key)):
                reason = reason or "repeated key"
            if reason:
                stats.drop(reason)
                continue
            if not keyed:
                roles["__key__"] = f"{self.name}_{ordinal:06d}"
                meta.setdefault("source_key", key)
                captions = meta.get("captions")
                if not (isinstance(captions, list) and captions):
                    meta["captions"] = [roles["text"]]
            last = roles["__key__"]
            yield roles

    def _shard_rows(self) -> Iterator[dict]:
        for raw in read_samples(self.inputs[0]):
            roles = by_role(raw)
            suffix = next((s for s in raw if s in IMAGE_SUFFIXES), "jpg")
            neg = next((s for s in IMAGE_SUFFIXES if f"neg.{s}" in raw), "jpg")
            yield {**roles, "suffix": suffix, "neg_suffix": neg}

    def _table_rows(self) -> Iterator[dict]:
        table, path = self.table or Table(), self.inputs[0]
        rows = read_table(path, table)[slice(*self.rows)]
        for number, (image, caption) in enumerate(rows, self.rows[0]):
            roles = {"__key__": os.path.splitext(os.path.basename(str(image)))[0] or str(number)}
            roles["text"] = str(caption or "").encode("utf-8", "replace")
            file = Path(table.root or os.path.dirname(path), str(image))
            # A member of another suffix would not be read back; decoders look at the bytes, not the name.
            suffix = file.suffix.lower().lstrip(".")
            roles["suffix"] = suffix if suffix in IMAGE_SUFFIXES else "jpg"
            try:
                roles["image"] = file.read_bytes()
            except (OSError, ValueError):
                roles["reason"] = "image file missing"
            yield roles


def _unusable(roles: dict) -> str | None:
    """Why a sample cannot be used, or None; decodes ``text`` in place."""
    if "text" not in roles:
        return "no caption"
    try:
        roles["text"] = roles["text"].decode("utf-8").strip()
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
