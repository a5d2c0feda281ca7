"""What a stage reads: the plan of units behind ``--input``, and the samples of one unit.

A unit is one input shard (or a run of rows of a csv, tsv or parquet table), joined by key with the
side shards that earlier stages of a build wrote for it. Its number names the output shard.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from open_clip_triplet.errors import PipelineError, ShardError
from open_clip_triplet.shards import IMAGE_SUFFIXES, by_role, expand_shards, read_meta, read_samples

TABLES = (".csv", ".tsv", ".parquet")


@dataclass
class Sample:
    """One sample between two stages. ``meta`` is the ``json`` member."""

    key: str
    text: str
    image: bytes | None = None
    suffix: str = "jpg"
    neg_text: str | None = None
    neg_image: bytes | None = None
    neg_suffix: str = "jpg"
    meta: dict = field(default_factory=dict)

    def members(self) -> dict:
        """The sample as ShardWriter takes it; absent members left out."""
        members = {"__key__": self.key, "txt": self.text, "json": self.meta}
        if self.image is not None:
            members[self.suffix] = self.image
        if self.neg_text is not None:
            members["neg.txt"] = self.neg_text
        if self.neg_image is not None:
            members[f"neg.{self.neg_suffix}"] = self.neg_image
        return members


class Tally:
    """Counts of one unit: samples read, dropped by reason, and whatever else a stage counts.

    ``values`` are lists with a value for each sample that is kept.
    ``report(fraction)`` is called by a stage now and then with the share of the unit that is done.
    """

    def __init__(self, report=lambda fraction: None):
        self.read = 0
        self.dropped: dict[str, int] = {}
        self.counts: dict[str, int] = {}
        self.values: dict[str, list] = {}
        self.report = report

    def drop(self, reason: str) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def count(self, name: str, number: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + number


@dataclass(frozen=True)
class Table:
    """How to read rows: which columns, and the folder that relative image paths start from."""

    image_key: str = "filepath"
    caption_key: str = "title"
    root: str = ""


@dataclass(frozen=True)
class Unit:
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

    def samples(self, tally: Tally, *, images: bool = True) -> Iterator[Sample]:
        """The unit's samples with their output keys, in order; what cannot be used is dropped by reason.

        Args:
            images: False leaves images out, which keeps a whole shard's captions small in memory.

        Raises:
            ShardError: an input is missing or damaged.
        """
        if len(self.inputs) == 1:
            for raw in self._raw(tally):
                yield self._plain(raw, images)
            return
        # The last input decides which samples there are: earlier stages have counted their drops.
        others, last = self.inputs[:-1], self.inputs[-1]
        first = Unit(self.index, others[:1], self.rows, self.table)
        streams = [u._raw(Tally()) for u in (first, *(Unit(self.index, (o,)) for o in others[1:]))]
        for raw in Unit(self.index, (last,))._raw(tally):
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

    def _raw(self, tally: Tally) -> Iterator[dict]:
        """Samples under role names, ``text`` decoded, ``meta`` parsed, ``__key__`` the output key."""
        if not os.path.exists(self.inputs[0]):
            raise ShardError(f"{self.inputs[0]}: no such file")
        rows = self._table_rows() if self.rows else self._shard_rows()
        keyed, last = None, ""
        for ordinal, roles in enumerate(rows):
            tally.read += 1
            reason = roles.pop("reason", None) or _unusable(roles)
            meta = roles["meta"] = read_meta(roles)
            key = roles["__key__"]
            if keyed is None:  # a shard that this tool wrote for this unit keeps its keys
                keyed = "source_key" in meta and key.startswith(f"{self.name}_")
            if keyed and not (key > last and re.fullmatch(rf"{self.name}_\d+", key)):
                reason = reason or "repeated key"
            if reason:
                tally.drop(reason)
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


@functools.lru_cache(maxsize=2)
def read_table(path: str, table: Table) -> list[tuple]:
    """(image path, caption) rows of a csv, tsv or parquet file.

    Raises:
        PipelineError: the file or one of its columns is missing; the columns found are named.
    """
    import pandas

    columns = [table.image_key, table.caption_key]
    try:
        if path.endswith(".parquet"):
            frame = pandas.read_parquet(path)
        else:
            separator = "\t" if path.endswith(".tsv") else ","
            frame = pandas.read_csv(path, sep=separator, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise PipelineError(f"{path}: cannot be read ({error})", 2) from error
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise PipelineError(
            f"{path} has no column {' or '.join(map(repr, missing))} "
            f"(it has: {', '.join(map(str, frame.columns))}). "
            "Name the columns with --image-key and --caption-key.",
            2,
        )
    return list(frame[columns].fillna("").itertuples(index=False, name=None))


def plan_units(
    spec: list[str] | str, table: Table | None = None, samples_per_shard: int = 10_000
) -> list[Unit]:
    """Units behind ``--input``: folders of shards, shard patterns, or tables, in the order given.

    Their paths are absolute: a worker of another machine has another working folder.

    Raises:
        PipelineError: nothing is found there.
    """
    units: list[Unit] = []
    for item in [spec] if isinstance(spec, str) else spec:
        if os.path.isdir(item):
            shards = sorted(str(path) for path in Path(item).glob("*.tar") if not path.name.startswith("."))
            if not shards:
                raise PipelineError(f"{item}: holds no .tar shard", 2)
        elif item.lower().endswith(TABLES):
            item = os.path.abspath(item)
            total = len(read_table(item, table or Table()))
            for start in range(0, total, samples_per_shard):
                rows = (start, min(start + samples_per_shard, total))
                units.append(Unit(len(units), (item,), rows, table or Table()))
            continue
        else:
            shards = expand_shards(item)
            if not any(os.path.exists(shard) for shard in shards):
                raise PipelineError(f"{item}: no such file or folder", 2)
        for shard in shards:
            units.append(Unit(len(units), (os.path.abspath(shard),)))
    if not units:
        raise PipelineError(f"{spec}: holds no sample", 2)
    return units


def known_samples(units: list[Unit]) -> int | None:
    """Samples in all units, by ``sizes.json``, img2dataset's ``_stats.json`` or row counts; None: unknown."""
    total, sizes = 0, {}
    for unit in units:
        if unit.rows:
            total += unit.rows[1] - unit.rows[0]
            continue
        folder, name = os.path.split(unit.inputs[-1])
        if folder not in sizes:
            sizes[folder] = read_json(os.path.join(folder, "sizes.json"))
        size = sizes[folder].get(name)
        if size is None:
            size = read_json(os.path.join(folder, name.removesuffix(".tar") + "_stats.json")).get("successes")
        if size is None:
            return None
        total += int(size)
    return total


def read_json(path: str | os.PathLike) -> dict:
    """The object in a json file; ``{}`` where there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
