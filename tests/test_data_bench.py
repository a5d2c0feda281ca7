"""The benchmark of the data pipeline runs, at a size that measures nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

BENCH = Path(__file__).parent.parent / "tools" / "bench_data.py"


@pytest.mark.skipif(sys.platform != "linux", reason="processor time and memory are read from /proc")
def test_prints_and_keeps_the_table(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.jpg")
    command = [BENCH, "--images", tmp_path, "--sizes", "256x256", "--samples", "1280", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, *command, "--out", tmp_path / "out.json"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "first batch over 1,000 shards" in done.stdout
    kept = json.loads((tmp_path / "out.json").read_text())
    assert kept["256x256"]["fast / stock"] > 0 and kept["machine"]["commit"]
    assert set(kept["256x256"]["milliseconds per image"]) >= {"tar", "tokenize", "fast: decode", "pil: transform"}
