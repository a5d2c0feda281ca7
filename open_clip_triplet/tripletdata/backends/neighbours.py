"""Nearest neighbours that are not near-duplicates: exact search shard by shard, or candidates from FAISS.

Features stay on disk and are mapped into memory, a file of each shard: 10 million rows of 512 halves are
10.2 GB there. So are the rows of an IVF index, which is built in parts: memory holds one part of a million
rows, or the sample that the index is trained on, and 200 bytes a row at most.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from open_clip_triplet.errors import PipelineError
from open_clip_triplet.tripletdata.run.stage import needs

CANDIDATES = 64  # neighbours looked at first; more where all of them are near-duplicates
MOST_CANDIDATES = 65_536
BLOCK_BYTES = 256 << 20  # of similarities held at once
TRAIN_ROWS = 64  # for each list of a FAISS index, that it is trained on
PART_ROWS = 1_000_000  # of a FAISS index in memory while it is built

Search = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


@dataclass
class Collection:
    """All rows that may be neighbours.

    Args:
        features: one [n, D] array for each shard, unit rows of halves or floats; a row of zeros takes no part.
        digests: [N] of the image bytes: equal means the same image.
        captions: [N, C] of each caption's words, 0 where there are fewer: one in common means the same.
    """

    features: list[np.ndarray]
    digests: np.ndarray
    captions: np.ndarray

    def __post_init__(self):
        sizes = [len(block) for block in self.features]
        self.first = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.usable = np.concatenate([(block != 0).any(axis=1) for block in self.features] or [np.empty(0)])

    def __len__(self) -> int:
        return int(self.first[-1])

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Float rows ``start`` to ``stop``, of any shards."""
        parts = [
            block[max(start - at, 0) : max(stop - at, 0)]
            for block, at in zip(self.features, self.first)
            if at < stop and at + len(block) > start
        ]
        return np.concatenate(parts).astype(np.float32)

    def same(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Whether rows ``a`` and ``b`` (indices [n]) show the same image or share a caption: [n] bools."""
        mine, theirs = self.captions[a], self.captions[b]
        shared = ((mine[:, :, None] == theirs[:, None, :]) & (mine[:, :, None] != 0)).any(axis=(1, 2))
        return shared | (self.digests[a] == self.digests[b])


def nearest_different(
    collection: Collection, rows: range, search: Search, max_similarity: float
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest neighbour of each of ``rows`` that is not a near-duplicate of it.

    Args:
        search: (queries [b, D], k) to cosines [b, k] and indices [b, k], -1 where there are fewer.
        max_similarity: cosine from which a neighbour counts as the same thing; from 1 on none does.

    Returns:
        Neighbour [len(rows)] (-1 where there is none) and cosine (NaN there). Among equals the lower wins.
    """
    neighbour = np.full(len(rows), -1, np.int64)
    cosine = np.full(len(rows), np.nan, np.float32)
    waiting = np.arange(rows.start, rows.stop)
    waiting = waiting[collection.usable[waiting]]
    queries = collection.rows(rows.start, rows.stop)
    longest = max(map(len, collection.features), default=1)
    k = min(CANDIDATES, len(collection))
    while len(waiting):
        left = []
        block = max(1, BLOCK_BYTES // (4 * max(longest, k)))
        for start in range(0, len(waiting), block):
            chosen = waiting[start : start + block]
            values, indices = search(queries[chosen - rows.start], k)
            column = _first_different(collection, chosen, values, indices, max_similarity)
            found = column >= 0
            at = chosen[found] - rows.start
            neighbour[at] = indices[found, column[found]]
            cosine[at] = values[found, column[found]]
            left.append(chosen[~found])
        if k >= min(len(collection), MOST_CANDIDATES):
            break
        waiting, k = np.concatenate(left), min(k * 8, len(collection), MOST_CANDIDATES)
    return neighbour, cosine


def _first_different(
    collection: Collection, me: np.ndarray, values: np.ndarray, indices: np.ndarray, max_similarity: float
) -> np.ndarray:
    """Column [b] of the first candidate of each row that counts, -1 where none does; sorts both in place."""
    order = np.lexsort((indices, -values), axis=-1)
    values[:], indices[:] = np.take_along_axis(values, order, 1), np.take_along_axis(indices, order, 1)
    allowed = (indices >= 0) & ((values < max_similarity) | (max_similarity >= 1)) & (indices != me[:, None])
    allowed &= collection.usable[np.maximum(indices, 0)]
    column = np.where(allowed.any(axis=1), allowed.argmax(axis=1), -1)
    rows = np.flatnonzero(column >= 0)
    while len(rows):
        same = collection.same(me[rows], indices[rows, column[rows]])
        rows = rows[same]
        allowed[rows, column[rows]] = False
        column[rows] = np.where(allowed[rows].any(axis=1), allowed[rows].argmax(axis=1), -1)
        rows = rows[column[rows] >= 0]
    return column


def exact_search(features: Sequence[np.ndarray], device: str = "cpu") -> Search:
    """Every row against every row, one shard in memory at a time. In halves on a GPU, floats on a CPU."""
    import torch

    kind = torch.float32 if device == "cpu" else torch.float16
    first = np.concatenate([[0], np.cumsum([len(block) for block in features])])

    def search(queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        wanted = torch.from_numpy(queries).to(device, kind)
        values = torch.empty(len(queries), 0, device=device)
        indices = torch.empty(len(queries), 0, dtype=torch.int64, device=device)
        for block, at in zip(features, first):
            cosines = (wanted @ torch.from_numpy(np.array(block)).to(device, kind).T).float()
            top = cosines.topk(min(k, len(block)), dim=1)
            values = torch.cat([values, top.values], 1)
            indices = torch.cat([indices, top.indices + int(at)], 1)
            if values.shape[1] > k:
                values, kept = values.topk(k, dim=1)
                indices = indices.gather(1, kept)
        return values.cpu().numpy(), indices.cpu().numpy()

    return search


def faiss_search(features: Sequence[np.ndarray], description: str, nprobe: int, path: str) -> Search:
    """Candidates from a FAISS index, built once and kept in a file that all processes map.

    Args:
        description: FAISS's, e.g. ``IVF16384,SQfp16``.
        nprobe: lists looked at, of those that an IVF index has. path: the index's file.

    Raises:
        PipelineError: FAISS is missing, or does not know the description.
    """
    with needs("--index needs FAISS"):
        import faiss
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(f"{path}.lock", "w") as lock:  # the first process builds it, the others wait
        fcntl.flock(lock, fcntl.LOCK_EX)
        index = _open_index(faiss, path)
        if index is None:
            _build_index(faiss, features, description, path)
            index = _open_index(faiss, path)
    if "IVF" in description:
        faiss.ParameterSpace().set_index_parameter(index, "nprobe", nprobe)

    def search(queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return index.search(queries, k)

    return search


def _open_index(faiss, path: str):
    """The index, its rows mapped into memory; None where there is none, or its lists are where it was moved from."""
    on_disk = os.path.exists(f"{path}.lists")
    try:
        return faiss.read_index(path, faiss.IO_FLAG_READ_ONLY if on_disk else faiss.IO_FLAG_MMAP)
    except RuntimeError:
        return None


def _build_index(faiss, features: Sequence[np.ndarray], description: str, path: str) -> None:
    """Write the index of all rows to ``path``, and the lists of an IVF index to ``path``.lists beside it."""
    index = _trained(faiss, features, description)
    lists = isinstance(index, faiss.IndexIVF)
    if lists:
        _add_on_disk(faiss, index, features, path)
    else:
        for block in features:
            index.add(np.asarray(block, np.float32))
    faiss.write_index(index, f"{path}.tmp")
    os.replace(f"{path}.tmp", path)


def _trained(faiss, features: Sequence[np.ndarray], description: str):
    try:
        index = faiss.index_factory(features[0].shape[1], description, faiss.METRIC_INNER_PRODUCT)
        pairs, lists = sum(map(len, features)), getattr(index, "nlist", 1)
        if pairs < lists:
            raise PipelineError(f"--index {description}: fewer pairs ({pairs:,}) than lists ({lists:,})", 2)
        rows = TRAIN_ROWS * max(lists, 1000)
        step = max(1, pairs // rows)
        chosen = [block[::step] for block in features]
        sample = np.empty((sum(map(len, chosen)), features[0].shape[1]), np.float32)
        np.concatenate(chosen, out=sample)
        index.train(sample)
    except RuntimeError as error:
        raise PipelineError(f"--index {description}: {error}", 2) from error
    return index


def _add_on_disk(faiss, index, features: Sequence[np.ndarray], path: str) -> None:
    """Fill the lists of a trained IVF index in parts of ``PART_ROWS``, which are then merged in a file."""
    from faiss.contrib.ondisk import merge_ondisk

    parts: list[str] = []
    first, part = 0, None
    for number, block in enumerate(features):
        part = part or faiss.clone_index(index)
        part.add_with_ids(np.asarray(block, np.float32), np.arange(first, first + len(block)))
        first += len(block)
        if part.ntotal >= PART_ROWS or number == len(features) - 1:
            parts.append(f"{path}.part{len(parts)}")
            faiss.write_index(part, parts[-1])
            part = None
    merge_ondisk(index, parts, f"{path}.lists")
    for name in parts:
        os.remove(name)
