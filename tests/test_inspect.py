"""Samples as a person looks at them: reading, sampling, differences, the contact sheet, and the command's ends."""

import json
import random

import pytest
from PIL import Image

from conftest import paired_sample, picture, write_shards
from open_clip_triplet.errors import ShardError
from open_clip_triplet.inspect import cli
from open_clip_triplet.inspect.diff import caption_diff
from open_clip_triplet.inspect.page import script_json, shorten
from open_clip_triplet.inspect.samples import find_shards, read_view_samples, view_sample
from open_clip_triplet.shards import ShardWriter


@pytest.mark.parametrize("caption, negative, left, right", [
    ("a red dog", "a blue dog", ["a ", "red", " dog"], ["a ", "blue", " dog"]),
    ("red dog", "blue dog", ["", "red", " dog"], ["", "blue", " dog"]),
    ("a dog", "a dog outside", ["a dog"], ["a dog", " outside"]),
    ("A dog runs.", "a dog sleeps.", ["A dog ", "runs", "."], ["a dog ", "sleeps", "."]),
    ("one two", "three four five", ["one two"], ["three four five"]),
    ("", "a dog", [""], ["a dog"]),
])
def test_difference_by_words(caption, negative, left, right):
    pieces = caption_diff(caption, negative)
    assert [[p.strip() for p in side] for side in pieces] == [[p.strip() for p in side] for side in (left, right)]
    assert ["".join(side) for side in pieces] == [caption, negative]


def test_difference_keeps_every_character():
    rng = random.Random(0)
    words = ["a", "Dog", "dog", "café", "don't", "—", ",", "  ", "\n", "<b>", "犬"]
    for _ in range(500):
        pair = [" ".join(rng.choices(words, k=rng.randint(0, 7))) for _ in range(2)]
        assert ["".join(side) for side in caption_diff(*pair)] == pair


def test_sample_is_random_seeded_and_reads_all_shards_alike(paired_shards, tmp_path):
    shards = find_shards(paired_shards)

    def keys(**how):
        return [sample.key for sample in read_view_samples(shards, **how)]

    everything = keys()
    assert len(everything) == 64
    assert keys(first=5) == everything[:5]
    assert keys(sample=10, seed=1) == keys(sample=10, seed=1) != keys(sample=10, seed=2)
    assert keys(sample=1000) == everything
    drawn = {key for seed in range(60) for key in keys(sample=4, seed=seed)}
    assert len(drawn) > 60  # of 64: none is left out for good
    # the same without sizes.json, where the samples are counted first
    bare = tmp_path / "bare"
    bare.mkdir()
    for url in shards:
        (bare / url.rpartition("/")[2]).write_bytes(open(url, "rb").read())
    assert [s.key for s in read_view_samples(find_shards(str(bare)), sample=10, seed=1)] == keys(sample=10, seed=1)


def test_json_of_any_shape_is_looked_at():
    for meta in ([], 3, {"captions": 5, "neg_captions": [1, None], "scores": [], "category": {}, "score": "high"}):
        sample = view_sample({"__key__": "0", "__url__": "x.tar", "txt": b"\xff", "json": json.dumps(meta).encode()})
        assert sample.scores == {} and sample.facets == {} and sample.neg_captions == []
    meta = {"scores": {"mean": 0.25, "model": "x"}, "similarity": 0.5, "seed": 7}
    meta["neg_categories"] = ["relation", "count"]
    sample = view_sample({"__key__": "0", "__url__": "x.tar", "json": json.dumps(meta).encode()})
    assert sample.scores == {"mean": 0.25, "similarity": 0.5}
    assert sample.category == "relation" and sample.neg_categories == ["relation", "count"]


def test_damaged_shard_shows_what_is_before_the_damage(tmp_path, capsys):
    write_shards(tmp_path, [8])
    whole = (tmp_path / "00000.tar").read_bytes()
    (tmp_path / "00000.tar").write_bytes(whole[: len(whole) // 2])
    assert 0 < len(list(read_view_samples(find_shards(str(tmp_path))))) < 8
    assert "ends early" in capsys.readouterr().err


def test_errors_are_one_line(tmp_path, capsys):
    for argv in (
        ["gallery", str(tmp_path), "--html", str(tmp_path / "x.html")],
        ["gallery", str(tmp_path / "none.tar"), "--html", str(tmp_path / "x.html")],
        ["gallery", str(tmp_path)],
        ["gallery", str(tmp_path), "--png", "x", "--sample", "0"],
    ):
        assert cli.main(argv) == 2
        message = capsys.readouterr().err
        assert message.startswith("triplet-inspect gallery: ") and message.count("\n") == 1
    assert not (tmp_path / "x.html").exists()
    with pytest.raises(ShardError, match="holds no .tar"):
        find_shards(str(tmp_path))


def test_contact_sheet(paired_shards, tmp_path):
    assert cli.main(["gallery", paired_shards, "--png", str(tmp_path / "sheet.png"), "--sample", "5"]) == 0
    sheet = Image.open(tmp_path / "sheet.png").convert("RGB")
    colours = {colour for _, colour in sheet.getcolors(2**24)}
    assert sheet.width > 1000 and any(r > 180 and g < 80 and b < 80 for r, g, b in colours)  # the red squares


def test_contact_sheet_of_broken_and_missing_images(tmp_path):
    with ShardWriter(tmp_path / "0.tar") as writer:
        writer.write({**paired_sample(0), "jpg": b"no image", "neg.jpg": picture(1)[:200]})
        writer.write({"__key__": "x", "txt": "only a caption " * 40})
    assert cli.main(["gallery", str(tmp_path), "--png", str(tmp_path / "sheet.png")]) == 0
    assert Image.open(tmp_path / "sheet.png").size[0] > 0


def test_json_in_a_script_element_cannot_end_it():
    text = script_json({"</script>": "<!-- & \u2028"})
    assert not any(character in text for character in "<>&\u2028")
    assert json.loads(text) == {"</script>": "<!-- & \u2028"}


def test_details_are_cut_to_size():
    deep = json.loads("[" * 800 + "]" * 800)
    cut = shorten({"a": "x" * 100, "nan": float("nan"), "deep": deep, "more": 1}, 400)
    assert cut["a"] == "x" * 100 and cut["nan"] == "nan" and "more" not in cut
    assert len(json.dumps(cut, allow_nan=False)) < 700


def test_overview_and_options_of_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    overview = capsys.readouterr().out
    assert stop.value.code == 0 and all(name in overview for name in cli.COMMANDS)
    for name in cli.COMMANDS:
        with pytest.raises(SystemExit) as stop:
            cli.main([name, "--help"])
        assert stop.value.code == 0 and "triplet-inspect" in capsys.readouterr().out
