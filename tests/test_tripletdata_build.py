"""``build``: all stages in one command, resumed after a kill, read by a trainer; the data card."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from build_fixtures import contents, plain_shards, tiny_sdxl
from conftest import train, train_argv
from open_clip_triplet import make_shards, tripletdata
from open_clip_triplet.shards import read_samples
from open_clip_triplet.tripletdata.run.card import cell

pytest.importorskip("diffusers", reason="diffusers is not installed: install open_clip_triplet with its extra `build`")
pytest.importorskip("spacy", reason="spaCy is not installed: install open_clip_triplet with its extra `build`")

ROOT = Path(__file__).parents[1]
CAPTIONS = [
    [
        "A red car behind a small bus.",
        "{} | <b>two</b> dogs *run* `here` under a tree",
        "zzz",
        "A big dog on a table.",
    ],
    ["A small cat on a red sofa.", "An old man sits in front of a blue house."],
    ["Two women walk to the left of a white horse.", "A yellow ball under a wooden chair."],
]


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return tiny_sdxl(tmp_path_factory.mktemp("sdxl"))


def build_argv(shards, output, pipe, *more) -> list[str]:
    options = ["--backend", "rules", "--negatives", "2", "--t2i", pipe, "--size", "32", "--save-size", "32"]
    return [
        "build",
        "--input",
        shards,
        "--output",
        str(output),
        *options,
        "--title",
        "A test",
        "--quiet",
        *more,
    ]


@pytest.fixture(scope="module")
def built(pipe, tmp_path_factory):
    """(input, output) of an undisturbed build."""
    folder = tmp_path_factory.mktemp("built")
    shards = plain_shards(folder / "in", CAPTIONS)
    assert make_shards.main(build_argv(shards, folder / "out", pipe)) == 0
    return shards, folder / "out"


def test_build_writes_paired_shards_sizes_summary_and_card(built):
    _, output = built
    samples = [sample for shard in sorted(output.glob("*.tar")) for sample in read_samples(shard)]
    assert len(samples) == 7 and all({"jpg", "txt", "neg.jpg", "neg.txt", "json"} < set(s) for s in samples)
    meta = json.loads(samples[0]["json"])
    assert meta["captions"] == ["A red car behind a small bus."] and len(meta["neg_captions"]) == 2
    assert {"source_key", "llm", "t2i", "seed"} < set(meta)
    assert json.loads((output / "sizes.json").read_text()) == {"00000.tar": 3, "00001.tar": 2, "00002.tar": 2}
    summary = json.loads((output / "summary.json").read_text())
    assert (summary["read"], summary["kept"], summary["shards"]) == (8, 7, 3)
    assert list(summary["stages"]) == ["captions", "images", "pack"]
    assert summary["stages"]["captions"]["dropped"] == {"no candidate": 1}
    card = (output / "README.md").read_text()
    assert (
        "--loss triplet" in card and "| captions | no candidate | 1 |" in card and card.count("<img ") == 14
    )
    assert "## What the negative captions change" in card and "| object |" in card
    assert len(meta["neg_categories"]) == 2
    assert "{} &#124; &lt;b&gt;two&lt;/b&gt; dogs &#42;run&#42; &#96;here&#96; under a tree" in card
    assert make_shards.main(["validate", "--input", str(output), "--quiet"]) == 0


def test_a_build_edits_its_positive_images_into_the_negative_ones(built, pipe, tmp_path):
    shards, _ = built
    edit = ["--mode", "edit", "--steps", "2", "--strength", "0.5"]
    assert make_shards.main(build_argv(f"{shards}/00001.tar", tmp_path / "out", pipe, *edit)) == 0
    (shard,) = (tmp_path / "out").glob("*.tar")
    for sample in read_samples(shard):
        meta = json.loads(sample["json"])
        assert meta["strength"] == 0.5 and meta["edit_prompt"] == sample["neg.txt"].decode()
        sizes = [Image.open(io.BytesIO(sample[name])).size for name in ("jpg", "neg.jpg")]
        assert sizes[0] == sizes[1]


def test_a_killed_build_goes_on_and_ends_with_the_same_bytes(built, pipe, tmp_path):
    shards, expected = built
    program = "import sys; from open_clip_triplet.make_shards import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", program, *build_argv(shards, tmp_path / "out", pipe)],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )
    first = tmp_path / "out/.work/images/00000.record.json"
    deadline = time.monotonic() + 240
    while not first.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert first.exists() and not (tmp_path / "out/README.md").exists()
    stamp = first.stat().st_mtime_ns
    assert make_shards.main(build_argv(shards, tmp_path / "out", pipe)) == 0
    assert first.stat().st_mtime_ns == stamp
    assert contents(tmp_path / "out") == contents(expected)


def test_a_finished_build_needs_neither_models_nor_side_shards(built, pipe, tmp_path):
    shards, expected = built
    shutil.copytree(expected, tmp_path / "out", ignore=shutil.ignore_patterns(".work"))
    pipeline_gone = build_argv(shards, tmp_path / "out", pipe)
    os.rename(pipe, pipe + "-gone")
    try:
        assert make_shards.main(pipeline_gone) == 0
    finally:
        os.rename(pipe + "-gone", pipe)
    final = {name: data for name, data in contents(expected).items() if not name.startswith(".work")}
    assert contents(tmp_path / "out") == final
    assert make_shards.main(build_argv(shards, tmp_path / "out", pipe, "--steps", "2")) == 2  # others' shards
    (tmp_path / "out/00002.tar").unlink()  # not whole any more: made again, and no other
    assert make_shards.main(build_argv(shards, tmp_path / "out", pipe)) == 0
    again = {name: data for name, data in contents(tmp_path / "out").items() if not name.startswith(".work")}
    assert again == final
    assert [path.name for path in (tmp_path / "out/.work/images").glob("*.tar")] == ["00002.tar"]


def test_one_broken_input_shard_is_named_and_the_rest_is_built(pipe, tmp_path, capfd):
    shards = plain_shards(tmp_path / "in", CAPTIONS)
    (tmp_path / "in/00001.tar").write_bytes(b"\0" * 100)
    assert make_shards.main(build_argv(shards, tmp_path / "out", pipe, "--no-images")) == 3
    assert "00001.tar" in capfd.readouterr().err
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert list(summary["failed"]) == ["00001.tar"] and summary["kept"] == 5
    card = (tmp_path / "out/README.md").read_text()
    assert "shards not read: 00001.tar" in card and "--loss negclip" in card
    (sample, *_) = read_samples(tmp_path / "out/00000.tar")
    assert "neg.txt" in sample and "neg.jpg" not in sample


def test_dry_run_prints_the_plan_and_writes_nothing(built, pipe, tmp_path, capsys):
    shards, _ = built
    assert make_shards.main(build_argv(shards, tmp_path / "plan", pipe, "--dry-run")) == 0
    plan = capsys.readouterr().out
    assert "3 shards" in plan and "GPU-hours" in plan and "free there" in plan
    assert "captions" not in plan and "images   8 at" in plan  # rules need no GPU
    assert make_shards.main(build_argv(shards, tmp_path / "plan", pipe, "--dry-run", "--rates", "captions=2")) == 0
    assert "captions 16 at 2/s per process (given): 0.0 CPU-hours, no GPU" in capsys.readouterr().out
    assert make_shards.main(build_argv(shards, tmp_path / "plan", pipe, "--dry-run", "--no-images", "--calibrate")) == 0
    assert re.search(r"captions 16 at .*/s per process \(measured here\)", capsys.readouterr().out)
    assert make_shards.main(build_argv(shards, tmp_path / "plan", pipe, "--dry-run", "--top-k", "3")) == 0
    assert "scores   8 at" in capsys.readouterr().out
    argv = ["--input", shards, "--output", str(tmp_path / "plan"), "--dry-run"]
    assert make_shards.main(["concepts", *argv]) == 0 and make_shards.main(["filter", *argv, "--top-k", "1"]) == 0
    assert not (tmp_path / "plan").exists()


@pytest.mark.parametrize("argv", [["--help"], ["build", "--help"]])
def test_help_has_examples_and_exit_statuses(argv, capsys):
    with pytest.raises(SystemExit):
        make_shards.main(argv)
    text = capsys.readouterr().out
    assert "triplet-shards build --input" in text and "3  some shards failed" in text


def test_a_trainer_reads_the_result(built, tiny_config, tmp_path):
    _, output = built
    shards = f"{output}/{{00000..00002}}.tar"
    flags = {"loss": "triplet", "train-data": shards, "dataset-type": "webdataset", "batch-size": 3}
    train(train_argv(tiny_config, tmp_path, "run", **flags))
    assert (tmp_path / "run/checkpoints/epoch_1.pt").exists()


def test_card_cells_hold_no_markup():
    assert cell("a|b\n<script>`x`[y](z)") == "a&#124;b &lt;script&gt;&#96;x&#96;&#91;y&#93;(z)"
    assert len(cell("x" * 1000)) == 200


def test_the_stages_know_nothing_of_what_is_above_them():
    package = Path(tripletdata.__file__).parent
    above = ("inspect", "evaluation", "train", "hooks", "validation")
    for path in package.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        found = [name for name in above if f"open_clip_triplet.{name}" in text]
        assert not found or path.name == "cli.py", f"{path.relative_to(package)} imports {found}"
