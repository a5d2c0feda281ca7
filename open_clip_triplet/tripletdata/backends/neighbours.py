"""Nearest neighbours that are not near-duplicates: exact blockwise search, or candidates from FAISS."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

CANDIDATES = 64  # neighbours looked at before a full sort of the row
BLOCK_BYTES = 256 << 20  # of similarities held at once


def nearest_different(
    features: np.ndarray, duplicate: Callable[[int, int], bool], max_similarity: float, device: str = "cpu",
    index: str | None = None, progress: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Each row's nearest neighbour that is not a near-duplicate.

    Args:
        features: [N, D], unit rows; a row with NaN takes no part.
        duplicate: whether rows i and j are the same thing.
        max_similarity: cosine from which a neighbour counts as the same thing.
        index: FAISS's description of an index, to look for candidates in; None searches exactly.

    Returns:
        Neighbour [N] (-1 where there is none) and cosine [N] (NaN there). Among equals the lower wins.
    """
    import torch

    from open_clip_triplet.tripletdata.run.progress import bar

    usable = np.flatnonzero(np.isfinite(features).all(axis=1))
    rows = torch.from_numpy(features[usable]).to(device)
    search = _exact(rows) if index is None else _faiss(features[usable], index)
    neighbour, cosine = np.full(len(features), -1), np.full(len(features), np.nan, np.float32)
    block = max(1, BLOCK_BYTES // (4 * max(1, len(usable))))
    for start in bar(range(0, len(usable), block), "search", unit="block", disable=not progress):
        for r, candidates in enumerate(zip(*search(slice(start, start + block))), start):
            me = usable[r]
            found = _first_different(me, *candidates, usable, duplicate, max_similarity)
            if found is None and len(usable) > CANDIDATES:
                every = (rows @ rows[r]).tolist()
                found = _first_different(me, every, range(len(usable)), usable, duplicate, max_similarity)
            if found is not None:
                neighbour[me], cosine[me] = found
    return neighbour, cosine


def _exact(rows):
    """A search of a slice of ``rows`` [n, D] in all of them: lists [b][k] of cosines and of columns."""

    def search(part: slice) -> tuple[list, list]:
        top = (rows[part] @ rows.T).topk(min(CANDIDATES, len(rows)), dim=1)
        return top.values.tolist(), top.indices.tolist()

    return search


def _faiss(rows: np.ndarray, description: str):
    """As ``_exact``, among the candidates that a FAISS index comes up with."""
    try:
        import faiss
    except ImportError as error:
        raise SystemExit("--index needs FAISS: install open_clip_triplet with its extra `build`") from error
    rows = np.ascontiguousarray(rows, np.float32)
    try:
        index = faiss.index_factory(rows.shape[1], description, faiss.METRIC_INNER_PRODUCT)
        index.train(rows)
    except RuntimeError as error:
        raise SystemExit(f"--index {description}: {error}") from error
    index.add(rows)

    def search(part: slice) -> tuple[list, list]:
        cosines, columns = index.search(rows[part], min(CANDIDATES, len(rows)))
        return cosines.tolist(), columns.tolist()

    return search


def _first_different(
    me: int, values: list, columns: Sequence[int], usable: np.ndarray, duplicate: Callable, max_similarity: float
) -> tuple[int, float] | None:
    for value, column in sorted(zip(values, columns), key=lambda found: (-found[0], found[1])):
        other = usable[column]
        if column < 0 or other == me or value >= max_similarity:  # FAISS fills up with -1
            continue
        if not duplicate(me, other):
            return other, value
    return None
