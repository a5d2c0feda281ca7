"""The shape world: what is in a scene, what a hard negative changes, and the shards."""

from __future__ import annotations

import io
import json
import random
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from open_clip_triplet.make_shards import main
from open_clip_triplet.shards import FIELDS, read_meta, read_samples, read_sizes, rename_members
from open_clip_triplet.tripletdata.worlds import scenes, shapes
from open_clip_triplet.tripletdata.worlds.scenes import Scene, Thing

OPTIONS = ["--samples", "120", "--val-samples", "60", "--shards", "3", "--workers", "1"]
THING = re.compile(rf"({'|'.join(scenes.COLOURS)}) ({'|'.join(scenes.SHAPES)})")


def build(folder, *more: str):
    assert main(["shapes", "--output", str(folder), *OPTIONS, *more]) == 0
    files = [path for path in sorted(folder.rglob("*.*")) if not path.name.startswith(".")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module", params=("single", "scenes"))
def world(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return folder, build(folder, "--world", request.param), request.param


def metas(folder, split: str) -> list[dict]:
    tars = sorted((folder / split).glob("*.tar"))
    return [read_meta(rename_members(sample)) for tar in tars for sample in read_samples(tar)]


def test_a_second_build_has_the_same_bytes(world, tmp_path):
    folder, first, name = world
    assert build(tmp_path, "--world", name, "--workers", "2") == first
    assert len([path for path in first if path.endswith(".tar")]) == 4


def test_an_interrupted_build_is_finished_to_the_same_bytes(world):
    folder, first, name = world
    (folder / "train" / "00001.tar").unlink()
    (folder / "train" / ".00001.tar.123.tmp").write_bytes(b"half a shard")
    (folder / "val" / "sizes.json").unlink()
    assert build(folder, "--world", name) == first


def test_another_seed_gives_other_samples_and_is_refused_in_the_same_folder(world, tmp_path, capsys):
    folder, first, name = world
    other = build(tmp_path, "--world", name, "--seed", "1")
    assert other["train/00000.tar"] != first["train/00000.tar"]
    assert main(["shapes", "--output", str(folder), *OPTIONS, "--world", name, "--seed", "1"]) == 2
    assert "seed: 0 there, 1 now" in capsys.readouterr().err


def test_shards_of_unknown_origin_are_not_mixed_with(tmp_path, capsys):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "00000.tar").write_bytes(b"")
    assert main(["shapes", "--output", str(tmp_path), *OPTIONS]) == 2
    assert "which no stage made" in capsys.readouterr().err


def test_every_sample_is_whole_and_sizes_say_how_many(world):
    folder, _, _ = world
    tars = [str(path) for path in sorted((folder / "train").glob("*.tar"))]
    assert read_sizes(tars) == [40, 40, 40]
    keys = set()
    for tar in tars:
        for sample in read_samples(tar):
            roles = rename_members(sample)
            assert set(roles) == {*FIELDS.values(), "__key__", "__url__"}
            assert Image.open(io.BytesIO(roles["image"])).size == (32, 32)
            meta = read_meta(roles)
            assert meta["captions"][0] == roles["text"].decode() and len(set(meta["captions"])) == 4
            assert meta["neg_captions"][0] == roles["neg_text"].decode()
            assert meta["neg_categories"][0] == meta["category"]
            assert not set(meta["captions"]) & set(meta["neg_captions"])
            keys.add(sample["__key__"])
    assert len(keys) == 120


def test_held_out_combinations_are_never_trained_on_and_always_validated_on(world):
    folder, _, _ = world

    def combinations(captions):
        return [THING.findall(caption) for caption in captions]

    for meta in metas(folder, "train"):
        for things in combinations(meta["captions"] + meta["neg_captions"]):
            assert things and not any(scenes.is_held_out(*thing) for thing in things)
    for meta in metas(folder, "val"):
        for things in combinations(meta["captions"]):
            assert any(scenes.is_held_out(*thing) for thing in things)


def test_every_colour_and_shape_is_seen_in_training():
    seen = [(c, s) for c in scenes.COLOURS for s in scenes.SHAPES if not scenes.is_held_out(c, s)]
    assert len(seen) == 64
    assert {c for c, _ in seen} == set(scenes.COLOURS) and {s for _, s in seen} == set(scenes.SHAPES)


def test_categories_are_spread_evenly_over_those_a_world_has(world):
    folder, _, name = world
    counts = Counter(meta["category"] for meta in metas(folder, "train"))
    expected = set(scenes.CATEGORIES) - ({"swap_obj"} if name == "single" else set())
    assert set(counts) == expected
    assert max(counts.values()) < 0.5 * 120


def words(caption: str) -> Counter:
    return Counter("a" if word == "an" else word for word in caption.split())


@pytest.mark.parametrize("world_name", ("single", "scenes"))
def test_each_category_changes_what_it_says_and_nothing_else(world_name):
    rng = random.Random(0)
    seen = Counter()
    for _ in range(300):
        scene = scenes.draw_scene(rng, world_name)
        for category, changed, other in scenes.hard_negatives(rng, scene, world_name, 7, unseen=True):
            seen[category] += 1
            assert other != scene
            fields = {
                "wall": scene.wall != other.wall, "frame": scene.frame != other.frame,
                "place": scene.place != other.place,
            }
            for old, new in zip(scene.things, other.things, strict=True):
                for name in ("shape", "colour", "size", "count", "pattern"):
                    fields[name] = fields.get(name, False) or getattr(old, name) != getattr(new, name)
            differing = {name for name, differs in fields.items() if differs}
            single = len(scene.things) == 1
            assert differing == ({"wall", "colour"} if category == "swap_att" and single else {changed})
            for old, new in zip(scenes.describe(scene), scenes.describe(other), strict=True):
                assert old != new
                if category.startswith("add"):
                    assert not words(old) - words(new)
                if category.startswith("swap") and {t.count for t in scene.things} == {1}:
                    assert words(old) == words(new)
    assert set(seen) == set(scenes.CATEGORIES) - ({"swap_obj"} if world_name == "single" else set())


@pytest.mark.parametrize(
    ("thing", "text"),
    [
        (Thing("star", "red", "large"), "a large red star"),
        (Thing("cross", "blue", "small", 3, "striped"), "three small striped blue crosses"),
        (Thing("circle", "orange", "small", 2), "two small orange circles"),
    ],
)
def test_a_thing_in_words(thing, text):
    assert str(thing) == text


def test_descriptions_use_the_right_article():
    scene = Scene((Thing("star", "red", "large"),), "left", "orange", "white")
    assert scenes.describe(scene)[0] == (
        "a large red star at the left of an orange wall with a white frame"
    )


def pixels(scene: Scene, size: int = 64, seed: int = 0) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(shapes.render(scene, random.Random(seed), size)))).astype(int)


def near(pixel, colour: str, light: float = 0.2) -> bool:
    """Within the world's change of light, which dims walls to 85%, and what JPEG adds."""
    return bool(np.abs(pixel - np.array(scenes.COLOURS[colour])).max() <= 255 * light)


def test_the_picture_shows_what_the_scene_says():
    image = pixels(Scene((Thing("circle", "red", "large"),), "left", "blue", "white"))
    assert near(image[32, 19], "red") and near(image[32, 50], "blue") and near(image[1, 30], "white")
    image = pixels(Scene((Thing("square", "yellow", "small"),), "bottom", "black"))
    assert near(image[45, 32], "yellow") and near(image[20, 32], "black") and near(image[0, 0], "black")


def test_relations_place_the_first_thing_where_they_say():
    things = (Thing("square", "red", "large"), Thing("square", "green", "large"))
    spots = {"to the left of": (32, 18), "to the right of": (32, 46), "above": (18, 32), "below": (46, 32)}
    for relation, spot in spots.items():
        assert near(pixels(Scene(things, relation, "white"))[spot], "red"), relation


def test_size_count_and_pattern_show():
    def area(**changes) -> int:
        thing = Thing(**{"shape": "square", "colour": "red", "size": "large", **changes})
        image = pixels(Scene((thing,), "left", "white"))
        return int(((image[..., 0] > 150) & (image[..., 1] < 120)).sum())

    assert area() > 2 * area(size="small")
    assert 3.3 < area(count=4) / area(count=1, size="large") / 0.46**2 < 4.7
    assert area(pattern="striped") < 0.9 * area() and area(pattern="dotted") < 0.95 * area()


def test_every_shape_looks_different():
    flat = {
        shape: pixels(Scene((Thing(shape, "red", "large"),), "left", "white")) for shape in scenes.SHAPES
    }
    for a in flat:
        for b in flat:
            assert a == b or np.abs(flat[a] - flat[b]).mean() > 1, (a, b)


def test_the_negative_picture_differs_only_in_what_changed():
    """The same jitter on both sides: with a changed colour, the outline stays where it was."""
    for index in range(40):
        sample = shapes.make_sample(index, world="single", split="train", seed=3, image_size=32)
        if sample["json"]["changed"] == "frame":
            images = [
                np.asarray(Image.open(io.BytesIO(sample[name]))).astype(int)[6:-6, 6:-6]
                for name in ("jpg", "neg.jpg")
            ]
            assert np.abs(images[0] - images[1]).max() < 40
            return
    raise AssertionError("no sample with a frame added among 40")


def test_options_that_cannot_be(capsys):
    with pytest.raises(SystemExit):
        main(["shapes", "--output", "x", "--samples", "0"])
    assert "not 1 or more" in capsys.readouterr().err


def test_the_note_says_how_the_folder_was_made(world):
    folder, first, name = world
    note = json.loads(first["train/stage.json"])
    assert note["world"] == name and note["samples"] == 120 and note["stage"] == "shapes"
