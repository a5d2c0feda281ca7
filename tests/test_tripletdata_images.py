"""Negative images with a real diffusers pipeline of tiny random weights, and packing."""

from __future__ import annotations

import io
import json

import pytest
from PIL import Image

from build_fixtures import Shout, contents, plain_shards, tiny_sdxl
from conftest import picture
from open_clip_triplet.errors import PipelineError
from open_clip_triplet.shards import ShardWriter, read_samples
from open_clip_triplet.tripletdata import cli
from open_clip_triplet.tripletdata.run.engines import Local
from open_clip_triplet.tripletdata.run.pictures import encode
from open_clip_triplet.tripletdata.run.plan import plan_tasks
from open_clip_triplet.tripletdata.run.runner import run_stage
from open_clip_triplet.tripletdata.stages.images import Diffusers, Images
from open_clip_triplet.tripletdata.stages.pack import Pack, fit

pytest.importorskip("diffusers", reason="diffusers is not installed: install open_clip_triplet with its extra `build`")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The pipeline, loaded as SDXL-Turbo would be."""
    model = Diffusers(tiny_sdxl(tmp_path_factory.mktemp("sdxl")), size=64, batch_size=2)
    model.open("cpu")
    return model


def pixels(images) -> list[bytes]:
    return [image.tobytes() for image in images]


def test_an_image_depends_on_its_caption_and_seed_alone(model):
    captions, seeds = ["a cat", "a dog", "a red bus", "a cat"], [1, 2, 3, 4]
    images = list(model.draw(captions, seeds))
    assert [image.size for image in images] == [(64, 64)] * 4
    assert pixels(images) == pixels(model.draw(captions, seeds))
    assert images[0].tobytes() != images[3].tobytes()
    assert pixels(model.draw(captions[2:], seeds[2:])) == pixels(images[2:])


def test_out_of_memory_halves_the_batch_and_goes_on(model, monkeypatch, capsys):
    import torch

    expected, real, sizes = pixels(model.draw(["a", "b", "c", "d", "e"], [1, 2, 3, 4, 5])), model._pipe, []

    def pipe(captions, **options):
        sizes.append(len(captions))
        if len(captions) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(captions, **options)

    monkeypatch.setattr(model, "_pipe", pipe)
    monkeypatch.setattr(model, "batch_size", 4)
    images = pixels(model.draw(["a", "b", "c", "d", "e"], [1, 2, 3, 4, 5]))
    assert sizes == [4, 2, 1, 1, 1, 1, 1] and "batches of 1" in capsys.readouterr().err
    close = [sum(abs(a - b) for a, b in zip(x, y)) / len(x) for x, y in zip(images, expected)]
    assert max(close) < 1  # of 255: batch size may change the last bit
    monkeypatch.setattr(model, "_pipe", lambda *_, **__: (_ for _ in ()).throw(torch.OutOfMemoryError("no")))
    with pytest.raises(PipelineError, match="out of memory with one image at 64 px"):
        list(model.draw(["a"], [1]))


def test_the_stage_draws_resizes_once_and_says_where_images_come_from(model, tmp_path, monkeypatch):
    shards = plain_shards(tmp_path / "in", [["a dog", "drop", "a cat"]])
    run_stage(Shout(), plan_tasks(shards), tmp_path / "captions", Local(cpu=True), quiet=True)
    tasks = plan_tasks(str(tmp_path / "captions"))
    monkeypatch.setattr(Diffusers, "open", lambda self, device: None)
    monkeypatch.setattr(Diffusers, "_pipe", model._pipe, raising=False)
    for name in ("one", "two"):
        run_stage(Images(model, save_size=48), tasks, tmp_path / name, Local(cpu=True), quiet=True)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    first, second = read_samples(tmp_path / "one/00000.tar")
    assert Image.open(io.BytesIO(first["neg.jpg"])).size == (48, 48)
    assert first["jpg"] == picture(0, size=(40, 48)) and first["neg.txt"] == b"A DOG!"
    meta = json.loads(second["json"])
    assert meta["t2i"] == model.model and meta["seed"] != json.loads(first["json"])["seed"]


def test_samples_without_a_negative_caption_are_counted(model, tmp_path):
    shards = plain_shards(tmp_path / "in", [["a dog"]])
    run = run_stage(Images(model), plan_tasks(shards), tmp_path / "out", Local(cpu=True), quiet=True)
    assert run.records()[0]["dropped"] == {"no negative caption": 1}


def test_a_missing_pipeline_stops_the_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shards = plain_shards(tmp_path / "in", [["a dog"]])
    argv = ["images", "--t2i", str(tmp_path / "none"), "--input", shards, "--output", str(tmp_path / "out")]
    assert cli.main(argv) == 4
    assert "cannot load the model" in capsys.readouterr().err


# packing


def test_images_are_fitted_by_their_shorter_side_and_small_ones_left_alone():
    large, small = picture(1, size=(800, 600)), picture(2, size=(300, 200))
    data, suffix = fit(large, 256, 95)
    assert Image.open(io.BytesIO(data)).size == (341, 256) and suffix == "jpg"
    assert fit(small, 256, 95) == (small, "jpg") and fit(large, 0, 95) == (large, "jpg")
    whole = Image.open(io.BytesIO(large)).resize((341, 256), Image.Resampling.BICUBIC)
    ours = Image.open(io.BytesIO(data))
    difference = sum(abs(a - b) for a, b in zip(whole.tobytes(), ours.tobytes())) / len(whole.tobytes())
    assert difference < 3  # of 255


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_any_kind_of_picture_becomes_rgb(mode):
    data = encode(Image.new(mode, (20, 10)), 5, 95)
    assert Image.open(io.BytesIO(data)).mode == "RGB" and Image.open(io.BytesIO(data)).size == (10, 5)


def test_pack_drops_what_a_trainer_could_not_read(tmp_path, capfd):
    whole = {"jpg": picture(0), "txt": "a", "neg.jpg": picture(1), "neg.txt": "b"}
    samples = {
        "kept": whole,
        "broken": {**whole, "jpg": whole["jpg"][:200]},
        "noise": {**whole, "neg.jpg": b"\0" * 99},
        "bare": {"jpg": picture(0), "txt": "a"},
        "half": {k: v for k, v in whole.items() if k != "neg.jpg"},
        "blind": {k: v for k, v in whole.items() if k != "jpg"},
    }
    with ShardWriter(tmp_path / "in/0.tar") as writer:
        for key, sample in samples.items():
            writer.write({"__key__": key, **sample})
    pack = ["pack", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--quiet"]
    assert cli.main(pack) == 3 and not (tmp_path / "out/00000.tar").exists()
    assert cli.main([*pack, "--max-drop", "1"]) == 0
    (sample,) = read_samples(tmp_path / "out/00000.tar")
    assert json.loads(sample["json"])["source_key"] == "kept"
    assert json.loads((tmp_path / "out/summary.json").read_text())["dropped"] == {
        "image cannot be decoded": 1,
        "negative image cannot be decoded": 1,
        "no image": 1,
        "no negative caption": 1,
        "no negative image": 1,
    }
    assert cli.main(["validate", "--input", str(tmp_path / "out"), "--quiet"]) == 0
    assert cli.main(["validate", "--input", str(tmp_path / "in"), "--quiet"]) == 3
    report = capfd.readouterr().out
    assert (
        "image cannot be decoded: 1, first broken" in report and "no negative text: 1, first bare" in report
    )


def test_a_decompression_bomb_costs_its_own_sample_only(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    shards = plain_shards(tmp_path / "in", [["large", "large"]])
    run = run_stage(Pack(negatives=()), plan_tasks(shards), tmp_path / "out", Local(cpu=True), quiet=True)
    assert not run.failed and run.records()[0]["dropped"] == {"image cannot be decoded": 2}


def test_validate_finds_repeated_keys_and_wrong_sizes(tmp_path, capfd):
    sample = {"jpg": picture(0), "txt": "a"}
    for shard in ("0", "1"):
        with ShardWriter(tmp_path / f"{shard}.tar") as writer:
            writer.write({"__key__": "k", **sample})
    (tmp_path / "sizes.json").write_text('{"0.tar": 2, "1.tar": 1}')
    assert cli.main(["validate", "--need", "pair", "--input", str(tmp_path), "--quiet", "--json"]) == 3
    faults = {k: v["faults"] for k, v in json.loads(capfd.readouterr().out)["shards"].items()}
    assert faults == {
        str(tmp_path / "0.tar"): {"sizes.json says 2 samples": 1},
        str(tmp_path / "1.tar"): {"repeated key": 1},
    }
