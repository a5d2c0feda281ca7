"""Nearest neighbours of many embeddings through FAISS, for mining in sets too large to compare pair by pair."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

#: rows below which every pair is compared: FAISS's lists would save nothing
EXACT_BELOW = 50_000
#: share of the lists that a query looks into; about 0.99 recall of the nearest on CLIP embeddings
PROBED = 0.05
BLOCK = 8192


def candidates(
    features: np.ndarray, count: int, *, gpu: bool = False, exact_below: int = EXACT_BELOW
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Blocks ``(first row, cosines [B, count], rows [B, count])`` of nearest rows, the row itself among them.

    Args:
        features: [N, D] float32, unit rows.
        count: neighbours per row; rows that have fewer are filled with -1.
        gpu: put the index on every visible GPU (needs faiss-gpu).

    Raises:
        SystemExit: FAISS is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise SystemExit("--index faiss needs FAISS: pip install 'open_clip_triplet[build]'") from error
    features = np.ascontiguousarray(features, dtype=np.float32)
    total, width = features.shape
    if total < exact_below:
        index = faiss.IndexFlatIP(width)
    else:
        lists = int(4 * total**0.5)
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = max(1, int(lists * PROBED))
        index.cp.seed = 0
        # Every k-th row, not a random draw: the same input gives the same lists.
        index.train(features[:: max(1, total // (lists * 64))])
    if gpu:
        index = faiss.index_cpu_to_all_gpus(index)
    index.add(features)
    for start in range(0, total, BLOCK):
        cosines, rows = index.search(features[start : start + BLOCK], min(count, total))
        yield start, cosines, rows
