"""Ready-made hard pairs: each format's columns, edits that name their original, what is dropped."""

from __future__ import annotations

import json

import pyarrow
import pyarrow.parquet
import pytest

from conftest import picture
from open_clip_triplet import make_shards
from open_clip_triplet.shards import read_samples


def image(number: int) -> dict:
    return {"bytes": picture(number), "path": None}


def run(folder, rows: dict, *options: str) -> int:
    (folder / "data").mkdir(exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(rows), folder / "data/a.parquet", row_group_size=2)
    argv = ["import", "--input", str(folder), "--output", str(folder / "out"), "--quiet", *options]
    return make_shards.main(argv)


def samples(folder) -> list[dict]:
    return [s for path in sorted((folder / "out").glob("*.tar")) for s in read_samples(path)]


ULTRAEDIT = {
    "source_image": [image(0), image(1), image(2)],
    "edited_image": [image(10), image(11), {"bytes": b"no image", "path": None}],
    "source_caption": ["a red car", "a dog", "a cat"],
    "target_caption": ["a blue car", "a wolf", "a lion"],
    "edit_prompt": ["paint it blue", "make it a wolf", "make it a lion"],
}


def test_a_table_with_both_sides_in_a_row(tmp_path, capsys):
    options = ["--format", "ultraedit", "--samples-per-shard", "2"]
    assert run(tmp_path, ULTRAEDIT, *options) == 3  # the last shard holds nothing but a broken image
    assert "1 of 1 samples dropped (image cannot be decoded 1)" in capsys.readouterr().err
    assert run(tmp_path, ULTRAEDIT, *options, "--max-drop", "1") == 0
    first, second = samples(tmp_path)
    assert (first["jpg"], first["neg.jpg"]) == (picture(0), picture(10))
    assert (first["txt"], first["neg.txt"]) == (b"a red car", b"a blue car")
    meta = json.loads(second["json"])
    assert meta["source"] == "BleachNick/UltraEdit" and meta["instruction"] == "make it a wolf"
    assert meta["neg_captions"] == ["a wolf"] and meta["licence"]
    assert make_shards.main(["validate", "--input", str(tmp_path / "out"), "--quiet"]) == 0
    card = (tmp_path / "out/README.md").read_text()
    assert "BleachNick/UltraEdit" in card and "Licence" in card and "--loss triplet" in card


def test_a_row_that_was_dropped_joins_the_others_when_asked_again(tmp_path):
    for number in (0, 2):
        (tmp_path / f"{number}.jpg").write_bytes(picture(number))
    (tmp_path / "t.csv").write_text("a,b,c,d\n0.jpg,one,2.jpg,two\n1.jpg,three,2.jpg,four\n2.jpg,five,0.jpg,six\n")
    argv = ["import", "--columns", "image=a", "caption=b", "neg_image=c", "neg_caption=d", "--quiet"]
    argv += ["--input", str(tmp_path / "t.csv"), "--output"]
    assert make_shards.main([*argv, str(tmp_path / "out")]) == 0
    assert [s["txt"] for s in samples(tmp_path)] == [b"one", b"five"]
    (tmp_path / "1.jpg").write_bytes(picture(1))
    assert make_shards.main([*argv, str(tmp_path / "out"), "--redo-dropped", "image file missing"]) == 0
    assert make_shards.main([*argv, str(tmp_path / "afresh")]) == 0
    assert [s["txt"] for s in samples(tmp_path)] == [b"one", b"three", b"five"]
    assert (tmp_path / "out/00000.tar").read_bytes() == (tmp_path / "afresh/00000.tar").read_bytes()
    assert not list((tmp_path / "out").glob("*.dropped.json"))


def test_the_last_part_to_end_writes_sizes_summary_and_card(tmp_path):
    options = ["--format", "ultraedit", "--samples-per-shard", "1", "--max-drop", "1"]
    assert run(tmp_path, ULTRAEDIT, *options, "--part", "2/2") == 0
    assert not (tmp_path / "out/sizes.json").exists() and not (tmp_path / "out/README.md").exists()
    assert run(tmp_path, ULTRAEDIT, *options, "--part", "1/2") == 0
    parts = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert {"sizes.json", "summary.json", "README.md"} <= parts.keys()
    assert run(tmp_path, ULTRAEDIT, *options) == 0
    assert all((tmp_path / "out" / name).read_bytes() == data for name, data in parts.items())


def test_dry_run_imports_nothing(tmp_path, capsys):
    assert run(tmp_path, ULTRAEDIT, "--format", "ultraedit", "--dry-run", "--calibrate") == 0
    assert "1 shards, about 3 samples" in capsys.readouterr().out and not (tmp_path / "out").exists()


def test_edits_that_name_their_original(tmp_path):
    rows = {
        "image_id": ["o1", "e1", "e2", "o2", "e3", "e4"],
        "image": [image(n) for n in range(6)],
        "caption": ["two dogs", "three dogs", "two cats", "a car", "a bus", "a van"],
        "bounding_boxes": ["[]"] * 6,
        "source_image_id": ["", "o1", "o1", "", "o2", "gone"],
        "category": ["", "counting", "object", "", "object", "object"],
    }
    assert run(tmp_path, rows, "--format", "vismin") == 0
    found = samples(tmp_path)
    assert [(s["txt"].decode(), s["neg.txt"].decode()) for s in found] == [
        ("two dogs", "three dogs"), ("two dogs", "two cats"), ("a car", "a bus"),
    ]
    assert found[2]["jpg"] == picture(3) and found[2]["neg.jpg"] == picture(4)
    meta = json.loads(found[0]["json"])
    assert meta["category"] == "counting" and meta["licence"] == "cc-by-sa-4.0" and meta["source_key"] == "e1"
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["dropped"] == {"its original is not there": 1} and summary["read"] == 4


def test_columns_of_any_table_and_the_ones_that_are_missing(tmp_path, capsys):
    rows = {"a": [image(0)], "b": ["one"], "c": [image(1)], "d": ["two"]}
    assert run(tmp_path, rows, "--columns", "image=a", "caption=b", "neg_image=c") == 2
    assert "neg_caption=COLUMN" in capsys.readouterr().err
    columns = ["--columns", "image=a", "caption=b", "neg_image=c", "neg_caption=d"]
    assert run(tmp_path, rows, *columns, "--source", "mine", "--licence", "mit") == 0
    assert json.loads(samples(tmp_path)[0]["json"])["licence"] == "mit"
    assert run(tmp_path, {"x": [1], "y": [2]}, "--format", "ultraedit") == 2
    said = capsys.readouterr().err
    assert "source_image" in said and "Name the columns with --columns" in said
    rows["b"] = [{"raw": "one"}]
    (tmp_path / "out2").mkdir()
    assert run(tmp_path / "out2", rows, *columns) == 3 and "caption is no text 1" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--format", "vismin", "--columns", "image=a"]])
def test_one_of_format_and_columns(options, tmp_path, capsys):
    assert run(tmp_path, {"a": [1]}, *options) == 2
    assert "give one of --format and --columns" in capsys.readouterr().err


def gpt_image_edit(folder, captions: str = "captions.csv") -> list[str]:
    """Annotations of GPT-Image-Edit-1.5M as its training_json has them, and captions of three of four images."""
    turns = [
        [{"from": "human", "value": "<image>\nMake the car blue."}, {"from": "gpt", "value": "<image>"}],
        [{"from": "human", "value": "Add a hat.\n<image>"}, {"from": "gpt", "value": "<image>"}],
    ]
    records = [
        {"image": [f"input/{n:04d}.jpg", f"output/{n:04d}.jpg"], "conversations": turn} for n, turn in enumerate(turns)
    ]
    (folder / "hqedit_gpt_edit.json").write_text(json.dumps(records))
    for number, side in enumerate(("input", "output")):
        (folder / side).mkdir()
        for n in range(2):
            (folder / side / f"{n:04d}.jpg").write_bytes(picture(10 * number + n))
    (folder / "captions.csv").write_text(
        "image,caption\ninput/0000.jpg,a red car\noutput/0000.jpg,a blue car\ninput/0001.jpg,a man\n"
    )
    return ["--format", "gpt-image-edit", "--input", str(folder / "hqedit_gpt_edit.json"), "--output",
            str(folder / "out"), "--quiet"]


def test_gpt_image_edit_takes_its_captions_from_a_table(tmp_path, capsys):
    argv = ["import", *gpt_image_edit(tmp_path)]
    assert make_shards.main(argv) == 2
    assert "instructions and no captions" in capsys.readouterr().err
    argv += ["--captions", str(tmp_path / "captions.csv")]
    assert make_shards.main(argv) == 0
    told = capsys.readouterr().err
    assert "2 edits, 1 of them without both captions" in told and "no caption 1" in told
    (sample,) = samples(tmp_path)
    assert (sample["txt"], sample["neg.txt"]) == (b"a red car", b"a blue car")
    assert (sample["jpg"], sample["neg.jpg"]) == (picture(0), picture(10))
    meta = json.loads(sample["json"])
    assert meta["instruction"] == "Make the car blue." and meta["licence"] == "cc-by-4.0"
    before = (tmp_path / "out/00000.tar").stat().st_mtime_ns
    assert make_shards.main(argv) == 0 and (tmp_path / "out/00000.tar").stat().st_mtime_ns == before


@pytest.mark.parametrize("records", ["[]]", '[{"image": ["a.jpg"]}]', '[{"image": ["a", "b"], "conversations": []}]'])
def test_annotations_of_another_form_are_refused(records, tmp_path, capsys):
    argv = ["import", *gpt_image_edit(tmp_path), "--captions", str(tmp_path / "captions.csv")]
    (tmp_path / "hqedit_gpt_edit.json").write_text(records)
    assert make_shards.main(argv) == 2 and "hqedit_gpt_edit.json" in capsys.readouterr().err
