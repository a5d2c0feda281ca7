"""FAISS neighbours beside exact search, and mining through them."""

from __future__ import annotations

import numpy as np
import pytest
from build_fixtures import plain_shards

from open_clip_triplet.shards import read_samples
from open_clip_triplet.tripletdata import cli, mine
from open_clip_triplet.tripletdata.neighbours import candidates

pytest.importorskip("faiss", reason="FAISS is not installed: pip install 'open_clip_triplet[build]'")


def unit_rows(count: int, width: int = 16) -> np.ndarray:
    """Rows in clusters, as embeddings are."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(count // 10, width))
    rows = np.repeat(centres, 10, axis=0) + 0.3 * random.normal(size=(count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_lists_find_nearly_all_that_exact_search_finds_and_the_same_each_time():
    rows = unit_rows(4000)
    (_, _, exact), (_, _, listed), (_, _, again) = (
        next(candidates(rows, 5, exact_below=limit)) for limit in (10**9, 0, 0)
    )
    assert (exact[:, 0] == np.arange(4000)).all() and (listed == again).all()
    recall = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(exact.tolist(), listed.tolist())])
    assert recall > 0.9


def test_mining_by_index_agrees_with_mining_every_pair():
    rows = unit_rows(200)
    pairs = [mine.Pair(str(n), "x.tar", [f"caption {n}"], "jpg", 0, 0, str(n).encode(), {}) for n in range(200)]
    exact = mine.nearest_different(rows, pairs, 0.99)
    listed = mine.nearest_different(rows, pairs, 0.99, index_kind="faiss")
    assert (exact[0] == listed[0]).all() and np.allclose(exact[1], listed[1], atol=1e-5)


def test_keys_that_repeat_across_shards_are_unique_in_the_output(tmp_path):
    shards = plain_shards(tmp_path / "in", [["a red dog runs", "a blue cat"], ["a red dog sits", "the blue cat"]])
    argv = ["mine", "--input", f"{shards}/{{00000..00001}}.tar", "--output", str(tmp_path / "out")]
    assert cli.main([*argv, "--index", "faiss", "--max-similarity", "1.1"]) == 0
    keys = [s["__key__"] for path in sorted((tmp_path / "out").glob("*.tar")) for s in read_samples(path)]
    assert keys == ["00000_000000000", "00000_000000001", "00001_000000000", "00001_000000001"]
