"""The benchmark of the losses runs, at a size that measures nothing."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def bench():
    spec = importlib.util.spec_from_file_location("bench_loss", ROOT / "tools" / "bench_loss.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_prints_and_keeps_the_table(bench, tmp_path, capsys):
    command = "--sizes 32 64 --compare-at 32 --rounds 1 --threads 1 --rank-samples 8 --out"
    bench.main([*command.split(), str(tmp_path)])
    text = capsys.readouterr().out
    assert "| forward + backward, N = 32, float32, CPU | ≤ 0.55× time |" in text
    assert "| forward + backward, N = 64, float32, CPU | ≤ 1.0× time, ≤ 1/8 memory |" in text
    assert (tmp_path / "bench_loss.md").read_text() == text.rstrip("\n") + "\n"
    kept = json.loads((tmp_path / "bench_loss.json").read_text())
    assert kept["surroundings"]["commit"] and kept["config"]["sizes"] == [32, 64]


def test_one_modality_travels(bench):
    """Half of what gathering four sets moves, plus the sums of the columns and a few scalars."""
    samples, ranks = 16, 4
    row = bench.bytes_between_ranks(ranks, samples)
    statistics = 2 * samples * ranks + 3  # sums of 2N columns; largest norms, loss
    assert row["ours"] == row["four_sets"] / 2 + 4 * statistics * 2 * (ranks - 1) / ranks
