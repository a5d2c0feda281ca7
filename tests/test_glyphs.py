"""The glyph world: what captions and pictures say, what is kept out of training, what a negative changes."""

from __future__ import annotations

import io
import itertools
import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from open_clip_triplet.make_shards import main
from open_clip_triplet.shards import read_samples, read_sizes
from open_clip_triplet.tripletdata.worlds import glyphs

INDICES = st.integers(0, 10**9)


def parsed(caption: str) -> list[tuple[str, str]]:
    """(sign, colour) of a caption, by its words alone."""
    return [(sign, colour) for colour, sign in re.findall(r"\ban? (\w+) (\w+)", caption)]


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


@settings(max_examples=40, deadline=None)
@given(INDICES, st.sampled_from(["train", "val"]))
def test_a_negative_changes_what_its_category_says_and_no_other_word(index, split):
    sample = glyphs.make_sample(index, split=split, seed=3, image_size=32)
    meta, things = sample["json"], parsed(sample["txt"])
    assert len(things) == glyphs.THINGS
    assert sorted(meta["neg_categories"]) == sorted(glyphs.CATEGORIES)
    for category, caption in zip(meta["neg_categories"], meta["neg_captions"]):
        changed = [(a, b) for a, b in zip(things, parsed(caption), strict=True) if a != b]
        if category == "swap_att":
            (sign_a, colour_a), after_a = changed[0]
            (sign_b, colour_b), after_b = changed[1]
            assert len(changed) == 2
            assert (after_a, after_b) == ((sign_a, colour_b), (sign_b, colour_a))
        elif category == "replace_att":
            ((before, after),) = changed
            assert before[0] == after[0] and after[1] not in {colour for _, colour in things}
        else:
            ((before, after),) = changed
            assert before[1] == after[1] and after[0] not in {sign for sign, _ in things}
    for (sign, colour), unit in zip(things, meta["units"], strict=True):
        ((after, other),) = parsed(unit["neg_text"])
        assert parsed(unit["text"]) == [(sign, colour)] and after == sign
        assert other in {name for _, name in things} - {colour}


@settings(max_examples=40, deadline=None)
@given(INDICES)
def test_held_out_pairs_of_signs_never_meet_in_training_and_always_in_val(index):
    for split in ("train", "val"):
        sample = glyphs.make_sample(index, split=split, seed=0, image_size=16)
        for caption in (sample["txt"], sample["neg.txt"], *sample["json"]["neg_captions"]):
            signs = [sign for sign, _ in parsed(caption)]
            meets = any(glyphs.is_held_out(a, b) for a, b in itertools.combinations(signs, 2))
            assert meets == (split == "val")


def test_every_sign_is_seen_with_most_others():
    names = list(glyphs.GLYPHS)
    held = [sum(glyphs.is_held_out(a, b) for b in names if b != a) for a in names]
    assert min(held) >= 3 and max(held) <= len(names) // 2
    assert all(glyphs.is_held_out(a, b) == glyphs.is_held_out(b, a) for a in names for b in names)


def test_signs_are_drawn_and_can_be_told_apart():
    masks = {name: np.asarray(glyphs._mask(character, 13), dtype=float).ravel()
             for name, character in glyphs.GLYPHS.items()}
    for name, mask in masks.items():
        assert mask.max() > 150, f"{name} is blank"
    for a, b in itertools.combinations(masks, 2):
        cosine = masks[a] @ masks[b] / np.linalg.norm(masks[a]) / np.linalg.norm(masks[b])
        assert cosine < 0.93, (a, b, cosine)


def test_the_drawn_negative_differs_in_the_things_that_changed_alone():
    for index in range(30):
        sample = glyphs.make_sample(index, split="train", seed=0, image_size=32)
        differs = np.abs(pixels(sample["jpg"]) - pixels(sample["neg.jpg"])).max(axis=2) > 40
        quarters = {(y // 16, x // 16) for y, x in np.argwhere(differs)}
        assert len(quarters) == (2 if sample["json"]["category"] == "swap_att" else 1)


def test_colours_are_the_captions():
    scene = tuple(glyphs.Thing("circle", colour) for colour in ("red", "green", "blue", "yellow"))
    image = pixels(glyphs.render(scene, random.Random(0), 64))
    centres = [image[y, x] for y in (16, 48) for x in (16, 48)]
    for colour in ("red", "green", "blue", "yellow"):
        wanted = np.array(glyphs.COLOURS[colour])
        assert min(np.abs(centre - wanted).max() for centre in centres) < 60, colour


def test_the_command_writes_both_splits_and_the_same_bytes_again(tmp_path):
    argv = ["shapes", "--world", "glyphs", "--samples", "12", "--val-samples", "5", "--shards", "2", "--workers", "1"]
    for folder in ("a", "b"):
        assert main([*argv, "--output", str(tmp_path / folder)]) == 0
    for name in ("train/00000.tar", "train/00001.tar", "val/00000.tar"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    shards = [str(tmp_path / "a" / "train" / f"0000{k}.tar") for k in range(2)]
    assert sum(read_sizes(shards)) == 12 == sum(len(list(read_samples(shard))) for shard in shards)


def test_without_matplotlib_the_message_says_what_to_install(monkeypatch):
    glyphs._font.cache_clear()
    monkeypatch.setattr(glyphs.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(glyphs.PipelineError, match="pip install matplotlib"):
        glyphs._font()
    glyphs._font.cache_clear()
