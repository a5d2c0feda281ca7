"""Image-caption pairs whose images stay in their shards, read in place when they are needed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

from open_clip_triplet import files
from open_clip_triplet.errors import ShardError
from open_clip_triplet.shards import IMAGE_SUFFIXES, read_meta, read_samples
from open_clip_triplet.tar import TarMembers
from open_clip_triplet.tripletdata.run.sample import Stats
from open_clip_triplet.tripletdata.run.task import ShardTask

#: captions of a pair that are compared
CAPTIONS = 16


@dataclass
class Pair:
    """One pair of the input. The image stays in its tar, at ``offset`` bytes of ``shard``."""

    key: str
    source_key: str
    shard: str
    captions: list[str]
    suffix: str
    offset: int
    size: int
    digest: int
    meta: dict

    def image(self) -> bytes:
        return files.read_bytes(self.shard, self.offset, self.offset + self.size)

    def line(self) -> bytes:
        """All of it but the digest, as one json line without the shard's folder."""
        values = [self.key, self.source_key, self.captions, self.suffix, self.offset, self.size, self.meta]
        return json.dumps(values, ensure_ascii=False, sort_keys=True).encode("utf-8", "replace")

    def caption_hashes(self) -> list[int]:
        """A number for each different caption, case and spacing aside."""
        words = {" ".join(caption.lower().split()).rstrip(".") for caption in self.captions}
        return sorted(map(_number, map(str.encode, words)))[:CAPTIONS]


def _number(data: bytes) -> int:
    """64 bits of SHA-256, never 0."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "little") or 1


def read_pairs(task: ShardTask, stats: Stats) -> Iterator[Pair]:
    """The pairs of one uncompressed shard, images left in place; what is unusable is dropped by reason.

    Raises:
        ShardError: it cannot be read in place, or is damaged and not to be salvaged.
    """

    def take(members: TarMembers, number: int, suffix: str) -> tuple[bytes, int]:
        return members.read(), members.offset

    shard, ordinal = task.inputs[0], -1
    try:
        for ordinal, sample in enumerate(read_samples(shard, take, in_place=True)):
            stats.read += 1
            key = f"{task.name}_{ordinal:06d}"
            found = _pair(shard, key, sample)
            if isinstance(found, str):
                stats.drop(found, key)
            else:
                yield found
    except OSError as error:
        raise ShardError(f"{shard}: cannot be read ({error.strerror or error})") from error
    except ShardError as error:
        if ordinal < 0 or not task.policy.salvage:
            raise
        stats.salvaged = str(error)
        stats.count("damaged shards cut short")


def _pair(shard: str, key: str, parts: dict) -> Pair | str:
    """The pair of a sample's members, or why it is none."""
    suffix = next((name for name in IMAGE_SUFFIXES if name in parts), None)
    if suffix is None or "txt" not in parts:
        return "no image" if suffix is None else "no caption"
    meta = read_meta({"meta": parts["json"][0]} if "json" in parts else {})
    text = parts["txt"][0].decode("utf-8", "replace").strip()
    captions = [c for c in meta.get("captions") or [] if isinstance(c, str) and c.strip()]
    captions = [text, *(c for c in captions if c != text)]
    data, offset = parts[suffix]
    if not text or not data:
        return "empty caption" if data else "empty image"
    return Pair(key, parts["__key__"], shard, captions, suffix, offset, len(data), _number(data), meta)
