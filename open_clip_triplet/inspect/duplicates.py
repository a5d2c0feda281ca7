"""The same picture twice: fingerprints of image bytes and of what they show, and pairs of near ones.

Near means a Hamming distance of few bits between perceptual hashes (imagehash's pHash, 64 bits).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from open_clip_triplet.errors import ImageError, UsageError
from open_clip_triplet.tripletdata.run.pictures import decode

#: bits that two hashes of one picture at other sizes and qualities may differ by
NEAR = 4
#: candidate pairs that are compared at a time
BLOCK = 1 << 22


class Fingerprint(NamedTuple):
    """``digest`` of the bytes; ``phash`` and ``size`` (width, height), None where it cannot be decoded."""

    digest: bytes
    phash: int | None
    size: tuple[int, int] | None


def fingerprint(data: bytes) -> Fingerprint:
    """The fingerprint of one image file."""
    try:
        import imagehash
    except ImportError as error:
        raise UsageError("imagehash is missing: install open_clip_triplet with its extra `inspect`") from error
    digest = hashlib.blake2b(data, digest_size=16).digest()
    try:
        picture = decode(data, 64)
    except ImageError:
        return Fingerprint(digest, None, None)
    bits = imagehash.phash(picture.rgb).hash.flatten()
    return Fingerprint(digest, int.from_bytes(np.packbits(bits).tobytes(), "big"), picture.size)


def normal_caption(text: str) -> str:
    """A caption without case, punctuation and doubled spaces: equal ones say the same.

    >>> normal_caption("A dog,  running.") == normal_caption("a dog running")
    True
    """
    return " ".join(re.findall(r"\w+", text.lower()))


def near_pairs(a: np.ndarray, b: np.ndarray | None = None, bits: int = NEAR) -> np.ndarray:
    """[p, 2] indices (i, j) with Hamming(a[i], b[j]) at most ``bits``; with ``b`` None, i < j within ``a``.

    Two hashes that differ in at most k bits agree in at least one of k + 1 bands, so only those that share
    a band are compared.

    Args:
        a: [n] uint64. b: [m] uint64 or None.
    """
    a = np.asarray(a, np.uint64)
    other = a if b is None else np.asarray(b, np.uint64)
    edges = np.linspace(0, 64, bits + 2).astype(int)
    found = [np.empty((0, 2), np.int64)]
    for low, high in zip(edges, edges[1:]):
        mask = np.uint64(((1 << int(high - low)) - 1) << int(low))
        for i, j in _same_band(a & mask, other & mask):
            close = np.bitwise_count(a[i] ^ other[j]) <= bits
            if b is None:
                close &= i < j
            found.append(np.stack([i[close], j[close]], axis=1))
    return np.unique(np.concatenate(found), axis=0)


def _same_band(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks of index pairs (i, j) with a[i] == b[j]."""
    order = np.argsort(b, kind="stable")
    ordered = b[order]
    first = np.searchsorted(ordered, a, "left")
    counts = np.searchsorted(ordered, a, "right") - first
    ends = np.cumsum(counts)
    start = 0
    while start < len(a):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + BLOCK, "right")))
        rows = np.repeat(np.arange(start, stop), counts[start:stop])
        inside = np.arange(len(rows)) - np.repeat(ends[start:stop] - counts[start:stop] - done, counts[start:stop])
        yield rows, order[first[rows] + inside]
        start = stop


def clusters(count: int, pairs: np.ndarray) -> list[list[int]]:
    """Groups of at least two of ``count`` items that ``pairs`` [p, 2] connect, largest first."""
    parent = list(range(count))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for i, j in pairs.tolist():
        i, j = sorted((root(i), root(j)))
        parent[j] = i
    groups: dict[int, list[int]] = {}
    for item in range(count):
        groups.setdefault(root(item), []).append(item)
    return sorted((group for group in groups.values() if len(group) > 1), key=lambda group: (-len(group), group))
