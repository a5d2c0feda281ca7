"""The benchmark of the losses runs, at a size that measures nothing."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_prints_and_keeps_the_table(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("bench_loss", ROOT / "tools" / "bench_loss.py")
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    command = "--sizes 32 64 --step-samples --rounds 1 --threads 1 --out"
    bench.main([*command.split(), str(tmp_path)])
    text = capsys.readouterr().out
    assert "| triplet loss, N = 64, against the paper's pseudo-code | time ≤ 1×, memory ≤ 1/8" in text
    assert (tmp_path / "bench_loss.md").read_text() == text.rstrip("\n") + "\n"
    kept = json.loads((tmp_path / "bench_loss.json").read_text())
    assert kept["surroundings"]["commit"] and set(kept["losses"]) == {"32", "64"}
