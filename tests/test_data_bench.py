"""The benchmark of the data pipeline runs, at a size that measures nothing; its loaders give the same samples."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

TOOLS = Path(__file__).resolve().parent.parent / "tools"
sys.path.insert(0, str(TOOLS))

import bench_data  # noqa: E402
import bench_peers  # noqa: E402

SAMPLES, BATCH = 48, 8


@pytest.fixture
def photos(tmp_path):
    """A dark and a bright one, which every crop leaves as they are."""
    for number, level in enumerate((40, 220)):
        Image.new("RGB", (64, 48), (level,) * 3).save(tmp_path / f"{number}.jpg")
    return tmp_path


@pytest.mark.skipif(sys.platform != "linux", reason="processor time and memory are read from /proc")
def test_prints_and_keeps_the_table(photos):
    command = [TOOLS / "bench_data.py", "--images", photos, "--sizes", "256x256", "--samples", "320", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, *command, "--out", photos / "out.json"], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert "first batch over 1,000 shards" in done.stdout
    kept = json.loads((photos / "out.json").read_text())
    assert kept["256x256"]["fast / stock"] > 0 and kept["machine"]["commit"]
    assert kept["256x256"]["paired"]["fast / stock"] > 0
    assert set(kept["256x256"]["milliseconds per image"]) >= {"tar", "tokenize", "fast: decode", "pil: transform"}
    if bench_peers.ENERGON_MISSING:
        assert "pip install megatron-energon" in done.stdout and kept["machine"]["energon"] is None
    else:
        assert kept["256x256"]["energon / stock"] > 0 and kept["256x256"]["paired"]["energon / stock"] > 0


@pytest.mark.parametrize("negatives", [False, True], ids=["pairs", "with negatives"])
@pytest.mark.parametrize("pipeline", ["stock", "energon", "pil", "fast"])
def test_every_loader_gives_every_sample_once_in_the_same_rows(photos, pipeline, negatives):
    if pipeline == "energon" and not importlib.util.find_spec("megatron"):
        pytest.skip("needs pip install megatron-energon")
    encoded = [path.read_bytes() for path in sorted(photos.glob("*.jpg"))]
    spec = bench_data.make_shards(photos / "shards", encoded, SAMPLES, shards=6, negatives=negatives)
    if pipeline == "energon":
        bench_peers.prepare_energon(photos / "shards")
    batches = list(bench_data.loader(pipeline, spec, workers=2, batch_size=BATCH, negatives=negatives))

    group = 1 + negatives
    assert [(images.shape, len(texts)) for images, texts in batches] == [
        ((BATCH * group, 3, 224, 224), BATCH * group)
    ] * (SAMPLES // BATCH)
    rows = [tuple(row.tolist()) for _, texts in batches for row in texts]
    bright = [bool(image.mean() > 0) for images, _ in batches for image in images]
    tokenize = bench_data.open_clip.get_tokenizer("ViT-B-32")
    expected = []
    for number in range(SAMPLES):
        texts = [f"{bench_data.CAPTION} {number}", f"{bench_data.CAPTION} Not {number}"][:group]
        captions = [tuple(row.tolist()) for row in tokenize(texts)]
        expected.append(tuple(zip(captions, [bool(number % 2), not number % 2])))
    found = [tuple(zip(rows[at : at + group], bright[at : at + group])) for at in range(0, len(rows), group)]
    assert sorted(found) == sorted(expected)
