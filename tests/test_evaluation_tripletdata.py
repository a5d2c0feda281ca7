"""TripletData scores over paired shards, against a plain loop on the same model."""

import copy

import numpy as np
import pytest
import torch

from evaluation_fixtures import jpeg, tiny_clip, write_paired_shard
from open_clip_triplet.errors import ShardError
from open_clip_triplet.evaluation.benchmarks.tripletdata import composition_scores, summarise


def by_loop(shard, model, preprocess, tokenizer):
    import io

    from PIL import Image

    from open_clip_triplet.shards import read_samples, rename_members

    counts = dict.fromkeys(("text", "image", "group"), 0)
    for sample in read_samples(shard):
        roles = rename_members(sample)
        with torch.no_grad():
            x = [
                model.encode_image(preprocess(Image.open(io.BytesIO(roles[r])))[None], normalize=True)[0]
                for r in ("image", "neg_image")
            ]
            y = [
                model.encode_text(tokenizer([roles[r].decode()]), normalize=True)[0]
                for r in ("text", "neg_text")
            ]
        s = [[float(a @ b) for b in y] for a in x]
        text = s[0][0] > s[0][1] and s[1][1] > s[1][0]
        image = s[0][0] > s[1][0] and s[1][1] > s[0][1]
        counts["text"] += text
        counts["image"] += image
        counts["group"] += text and image
    return counts


def test_scores_equal_a_plain_loop_whatever_the_batch_size(tmp_path):
    write_paired_shard(tmp_path / "0.tar", range(13))
    parts = tiny_clip()
    expected = by_loop(tmp_path / "0.tar", *parts)
    assert 0 < expected["text"] < 13  # or the test could not tell right from wrong
    model, preprocess, tokenizer = parts
    for batch_size in (1, 5, 64):
        scores = composition_scores(
            model, str(tmp_path / "0.tar"), preprocess, tokenizer, batch_size=batch_size
        )
        assert scores["items"] == 13 and scores["dropped"] == {}
        for name, count in expected.items():
            assert scores[f"{name}_score"] == pytest.approx(count / 13)
            low, high = scores[f"{name}_score_interval"]
            assert low <= count / 13 <= high
        assert sum(scores["histograms"]["image"]) == sum(scores["histograms"]["text"]) == 13


def test_half_samples_and_damaged_images_are_counted_by_reason(tmp_path):
    write_paired_shard(
        tmp_path / "0.tar",
        range(6),
        s1={"neg.jpg": None},
        s2={"jpg": jpeg(2)[:60]},
        s3={"neg.txt": None, "json": {"neg_captions": ["a caption kept in the json"]}},
        s4={"neg.txt": "  "},
        s5={"txt": b"\xff\xfe"},
    )
    model, preprocess, tokenizer = tiny_clip()
    scores = composition_scores(model, tmp_path.joinpath("0.tar").as_posix(), preprocess, tokenizer)
    assert scores["items"] == 2
    assert scores["dropped"] == {
        "without neg_image": 1,
        "image damaged": 1,
        "caption empty": 1,
        "caption not UTF-8": 1,
    }


def test_limit_order_and_mode(tmp_path):
    write_paired_shard(tmp_path / "0.tar", range(4))
    write_paired_shard(tmp_path / "1.tar", range(4, 8))
    model, preprocess, tokenizer = tiny_clip()
    model.train()
    model.visual.eval()
    spec = f"{tmp_path}/<0..1>.tar"
    assert composition_scores(model, spec, preprocess, tokenizer, max_samples=5)["items"] == 5
    assert composition_scores(model, f"pipe:cat {tmp_path}/0.tar", preprocess, tokenizer)["items"] == 4
    assert model.training and not model.visual.training
    model.eval()


def test_weights_in_low_precision_are_scored(tmp_path):
    """As training with --precision pure_bf16: the images must be cast to what the weights are in."""
    write_paired_shard(tmp_path / "0.tar", range(3))
    model, preprocess, tokenizer = tiny_clip()
    low = copy.deepcopy(model).to(torch.bfloat16)
    shard = str(tmp_path / "0.tar")
    scores = composition_scores(low, shard, preprocess, tokenizer, input_dtype=torch.bfloat16)
    assert scores["items"] == 3
    with pytest.raises(RuntimeError):  # else this test could not fail
        composition_scores(low, shard, preprocess, tokenizer)


def test_nothing_to_score_is_an_error_that_says_why(tmp_path):
    write_paired_shard(tmp_path / "0.tar", [1], s1={"neg.jpg": None, "neg.txt": None})
    model, preprocess, tokenizer = tiny_clip()
    with pytest.raises(ShardError, match="1 without neg_image and neg_text"):
        composition_scores(model, str(tmp_path / "0.tar"), preprocess, tokenizer)
    with pytest.raises(ShardError, match="missing.tar"):
        composition_scores(model, str(tmp_path / "missing.tar"), preprocess, tokenizer)


def test_damaged_shard_keeps_the_samples_before_the_damage(tmp_path):
    write_paired_shard(tmp_path / "0.tar", range(4))
    data = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(data[: len(data) * 2 // 3])
    model, preprocess, tokenizer = tiny_clip()
    scores = composition_scores(model, str(tmp_path / "0.tar"), preprocess, tokenizer)
    assert 1 <= scores["items"] < 4
    assert scores["dropped"] == {"shard damaged: the rest of it was not read": 1}


def test_summary_by_hand():
    #        s00  s01  s10  s11  x·x' y·y'
    rows = [
        [0.9, 0.1, 0.2, 0.8, 0.5, -2.0],  # all right
        [0.9, 0.1, 0.9, 0.8, 0.5, 0.99],  # caption 0: a tie between the images; image 1 prefers caption 0
        [0.5, 0.5, 0.1, 0.9, 0.5, 0.5],  # image 0 ties between the captions
        [0.1, 0.9, 0.9, 0.1, 0.5, 0.5],
    ]  # all wrong
    result = summarise(np.array(rows))
    assert (result["text_score"], result["image_score"], result["group_score"]) == (0.25, 0.5, 0.25)
    assert result["ties"] == 2 and result["items"] == 4
    assert result["histograms"]["text"][0] == 1 and result["histograms"]["text"][-1] == 1
