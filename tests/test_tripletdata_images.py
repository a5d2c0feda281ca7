"""Negative images with a real diffusers pipeline of tiny random weights, and packing."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from build_fixtures import Shout, contents, plain_shards, tiny_flux2, tiny_pix2pix, tiny_sdxl
from conftest import picture
from open_clip_triplet import make_shards
from open_clip_triplet.errors import PipelineError
from open_clip_triplet.shards import ShardWriter, read_samples
from open_clip_triplet.tripletdata.backends.diffusers import Diffusers
from open_clip_triplet.tripletdata.backends.drawn import BadImage, images_of
from open_clip_triplet.tripletdata.run.engines import Local
from open_clip_triplet.tripletdata.run.pictures import ORIENTATION, encode
from open_clip_triplet.tripletdata.run.plan import plan_tasks
from open_clip_triplet.tripletdata.run.runner import run_stage
from open_clip_triplet.tripletdata.stages.images import Images
from open_clip_triplet.tripletdata.stages.pack import Pack, fit

pytest.importorskip("diffusers", reason="diffusers is not installed: install open_clip_triplet with its extra `build`")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_sdxl(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def model(folder):
    """The pipeline, loaded as SDXL-Turbo would be."""
    model = Diffusers(folder, size=64, batch_size=2)
    model.open("cpu")
    return model


@pytest.fixture(scope="module")
def editor(folder):
    """The same pipeline's image-to-image relative."""
    model = Diffusers(folder, size=64, batch_size=2, edit=True, steps=2, strength=0.5)
    model.open("cpu")
    return model


@pytest.fixture(scope="module")
def pix2pix(tmp_path_factory):
    folder = tiny_pix2pix(tmp_path_factory.mktemp("pix2pix"))
    model = Diffusers(folder, size=64, batch_size=2, edit=True, steps=2, guidance=7.5)
    model.open("cpu")
    return model


def pixels(images) -> list[bytes]:
    return [image.tobytes() for image in images]


def difference(one, other) -> float:
    """Mean absolute difference of two images' bytes, of 255."""
    one, other = one.tobytes(), other.tobytes()
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)


def test_an_image_depends_on_its_caption_and_seed_alone(model):
    captions, seeds = ["a cat", "a dog", "a red bus", "a cat"], [1, 2, 3, 4]
    images = list(model.draw(captions, seeds))
    assert [image.size for image in images] == [(64, 64)] * 4
    assert pixels(images) == pixels(model.draw(captions, seeds))
    assert images[0].tobytes() != images[3].tobytes()
    assert max(map(difference, model.draw(captions[2:], seeds[2:]), images[2:])) < 1


def test_prompts_encoded_ahead_draw_what_the_pipeline_draws_from_text(model, monkeypatch):
    ours = list(model.draw(["a cat", "a dog"], [1, 2]))
    monkeypatch.setattr(model, "_encode", lambda prompts: {"prompt": prompts})
    assert max(map(difference, ours, model.draw(["a cat", "a dog"], [1, 2]))) < 1


def test_out_of_memory_halves_the_batch_and_goes_on(model, monkeypatch, capsys):
    import torch

    captions, seeds = ["a", "b", "c", "d", "e"], [1, 2, 3, 4, 5]
    expected, real, sizes = list(model.draw(captions, seeds)), model._run, []

    def run(options, seeds):
        sizes.append(len(seeds))
        if len(seeds) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(options, seeds)

    monkeypatch.setattr(model, "_run", run)
    monkeypatch.setattr(model, "batch_size", 4)
    images = list(model.draw(captions, seeds))
    assert sizes == [4, 2, 1, 1, 1, 1, 1] and "batches of 1" in capsys.readouterr().err
    assert max(map(difference, images, expected)) < 1  # batch size may change the last bit
    monkeypatch.setattr(model, "_run", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no")))
    with pytest.raises(PipelineError, match="out of memory with one image at 64 px"):
        list(model.draw(["a"], [1]))


def test_images_that_show_nothing_are_told():
    import torch

    noise = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    holed, black, gray = noise.clone(), torch.zeros(3, 8, 8), torch.full((3, 8, 8), 0.5)
    holed[1, 2, 3] = float("nan")
    found = list(images_of(torch.stack([noise, holed, black, gray, noise]), [False] * 4 + [True]))
    assert found[0].getpixel((3, 2))[0] == round(noise[0, 2, 3].item() * 255)
    assert [image.reason for image in found[1:]] == [
        "image is not a number",
        "image is of one colour",
        "image is of one colour",
        "blanked by the safety checker",
    ]


def negatives_of(tmp_path, texts) -> list:
    shards = plain_shards(tmp_path / "in", [texts])
    run_stage(Shout(), plan_tasks(shards), tmp_path / "captions", Local(cpu=True), quiet=True)
    return plan_tasks(str(tmp_path / "captions"))


def draw(model, tasks, output, monkeypatch, **options):
    """A run of the stage with a pipeline that is already open."""
    monkeypatch.setattr(Diffusers, "open", lambda self, device: None)
    return run_stage(Images(model, **options), tasks, output, Local(cpu=True), quiet=True)


def test_the_stage_draws_resizes_once_and_says_where_images_come_from(model, tmp_path, monkeypatch):
    tasks = negatives_of(tmp_path, ["a dog", "drop", "a cat"])
    for name in ("one", "two"):
        draw(model, tasks, tmp_path / name, monkeypatch, save_size=48)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    first, second = read_samples(tmp_path / "one/00000.tar")
    assert Image.open(io.BytesIO(first["neg.jpg"])).size == (48, 48)
    assert first["jpg"] == picture(0, size=(40, 48)) and first["neg.txt"] == b"A DOG!"
    meta = json.loads(second["json"])
    assert meta["t2i"] == Path(model.model).name and meta["seed"] != json.loads(first["json"])["seed"]


def test_bad_images_are_drawn_again_with_another_seed_then_dropped(model, tmp_path, monkeypatch):
    seen, real = [], model.draw

    def once_bad(prompts, seeds, images=None):
        seen.append(list(zip(prompts, seeds)))
        bad = {"A DOG!": 1, "A CAT!": 9}
        for prompt, image in zip(prompts, real(prompts, seeds)):
            tried = sum(prompt == p for asked in seen for p, _ in asked)
            yield BadImage("image is of one colour") if tried <= bad.get(prompt, 0) else image

    monkeypatch.setattr(model, "draw", once_bad)
    run = draw(model, negatives_of(tmp_path, ["a dog", "a cat", "a bus"]), tmp_path / "out", monkeypatch)
    (record,) = run.records()
    assert record["dropped"] == {"image is of one colour": 1} and record["counts"] == {"drawn again": 3}
    assert [len(asked) for asked in seen] == [3, 1, 1, 1]
    assert len({seed for asked in seen for prompt, seed in asked if prompt == "A CAT!"}) == 3
    dog, bus = read_samples(tmp_path / "out/00000.tar")
    assert json.loads(dog["json"])["seed"] == seen[1][0][1] and bus["neg.jpg"]


def test_prompts_beyond_the_text_encoder_are_counted_and_nothing_is_logged(
    model, tmp_path, monkeypatch, capfd, caplog
):
    tasks = negatives_of(tmp_path, ["a dog", "a dog " * 60])
    run = draw(model, tasks, tmp_path / "drop", monkeypatch)
    assert run.records()[0]["dropped"] == {"prompt longer than the text encoder reads": 1}
    run = draw(model, tasks, tmp_path / "cut", monkeypatch, long_prompts="truncate")
    assert run.records()[0]["kept"] == 2 and run.records()[0]["counts"] == {"prompts truncated": 1}
    assert "77" not in capfd.readouterr().err and not caplog.records


def test_half_precision_decodes_in_bfloat16_where_the_vae_asks_to_be_upcast(folder):
    import torch
    from diffusers import AutoencoderKL

    assert AutoencoderKL.load_config(folder, subfolder="vae")["force_upcast"]
    for edit in ({}, {"edit": True, "steps": 2, "strength": 0.5}):
        half, full = Diffusers(folder, size=64, dtype="float16", **edit), Diffusers(folder, size=64, **edit)
        half.open("cpu")
        full.open("cpu")
        pictures = [Image.open(io.BytesIO(picture(1, size=(64, 64))))] if edit else None
        (image,), (expected,) = (model.draw(["a cat"], [1], pictures) for model in (half, full))
        assert half._pipe.vae.dtype == torch.bfloat16 and half._pipe.unet.dtype == torch.float16
        assert difference(image, expected) < 8


def test_another_autoencoder_by_name(folder, tmp_path):
    import torch
    from diffusers import AutoencoderTiny

    AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
    ).save_pretrained(tmp_path / "tiny")
    model = Diffusers(folder, size=64, vae=str(tmp_path / "tiny"))
    model.open("cpu")
    assert type(model._pipe.vae) is AutoencoderTiny and model._pipe.vae.dtype == torch.float32
    model = Diffusers(folder, vae=folder + "/unet")
    with pytest.raises(PipelineError, match="no autoencoder but a UNet2DConditionModel"):
        model.open("cpu")


def test_an_image_is_edited_as_much_as_strength_says_in_its_own_shape(editor):
    pictures = [Image.open(io.BytesIO(picture(n, size=size))) for n, size in enumerate([(96, 64), (64, 96)])]
    assert not editor.follows_instructions
    wide, tall, again = editor.draw(["a cat", "a dog", "a cat"], [1, 2, 1], [*pictures, pictures[0]])
    assert wide.size == again.size and wide.width > wide.height and tall.height > tall.width
    assert difference(wide, again) < 1


def test_edited_negatives_keep_the_proportions_of_their_positives(editor, pix2pix, tmp_path, monkeypatch):
    tasks = negatives_of(tmp_path, ["a dog", "a cat"])
    for name, model in (("image-to-image", editor), ("instructions", pix2pix)):
        run = draw(model, tasks, tmp_path / name, monkeypatch, save_size=40)
        assert run.records()[0]["kept"] == 2
        first, _ = read_samples(tmp_path / name / "00000.tar")
        assert Image.open(io.BytesIO(first["neg.jpg"])).size == (40, 48)  # as the positive
    (turned,) = negatives_of(tmp_path / "turned", ["a dog"])
    with ShardWriter(turned.inputs[0]) as writer:
        exif = Image.Exif()
        exif[ORIENTATION] = 6  # held upright: 40 by 48 when it is looked at
        buffer = io.BytesIO()
        Image.open(io.BytesIO(picture(1, size=(48, 40)))).save(buffer, "JPEG", exif=exif)
        writer.write({"__key__": "0", "jpg": buffer.getvalue(), "txt": "a dog", "neg.txt": "a cat"})
    draw(editor, [turned], tmp_path / "upright", monkeypatch, save_size=40)
    (upright,) = read_samples(tmp_path / "upright/00000.tar")
    assert Image.open(io.BytesIO(upright["neg.jpg"])).size == (40, 48)
    meta = json.loads(first["json"])
    assert pix2pix.follows_instructions and meta["edit_prompt"] == 'make it a picture of: A DOG!'


def test_a_pipeline_that_takes_images_as_references_edits_one_a_call(tmp_path):
    model = Diffusers(tiny_flux2(tmp_path / "flux2"), size=64, batch_size=4, edit=True)
    model.open("cpu")
    pictures = [Image.open(io.BytesIO(picture(n, size=(96, 64)))) for n in (1, 2)]
    assert model.follows_instructions
    first, second = model.draw(["make it red", "make it red"], [1, 1], pictures)
    (alone,) = model.draw(["make it red"], [1], pictures[1:])
    assert difference(first, second) > 0 and difference(second, alone) == 0
    assert model.too_long(["make it red", "word " * 200]) == [False, True]  # its tokens are letters


def test_fewer_than_one_step_of_editing_is_refused(folder):
    with pytest.raises(PipelineError, match="less than one step"):
        Diffusers(folder, edit=True, steps=1, strength=0.5).open("cpu")


def test_samples_without_a_negative_caption_are_counted(model, tmp_path):
    shards = plain_shards(tmp_path / "in", [["a dog"]])
    run = run_stage(Images(model), plan_tasks(shards), tmp_path / "out", Local(cpu=True), quiet=True)
    assert run.records()[0]["dropped"] == {"no negative caption": 1}


def test_a_missing_pipeline_stops_the_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shards = plain_shards(tmp_path / "in", [["a dog"]])
    argv = ["images", "--t2i", str(tmp_path / "none"), "--input", shards, "--output", str(tmp_path / "out")]
    assert make_shards.main(argv) == 4
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
    assert make_shards.main(pack) == 3 and not (tmp_path / "out/00000.tar").exists()
    assert make_shards.main([*pack, "--max-drop", "1"]) == 0
    (sample,) = read_samples(tmp_path / "out/00000.tar")
    assert json.loads(sample["json"])["source_key"] == "kept"
    assert json.loads((tmp_path / "out/summary.json").read_text())["dropped"] == {
        "image cannot be decoded": 1,
        "negative image cannot be decoded": 1,
        "no image": 1,
        "no negative caption": 1,
        "no negative image": 1,
    }
    assert make_shards.main(["validate", "--input", str(tmp_path / "out"), "--quiet"]) == 0
    assert make_shards.main(["validate", "--input", str(tmp_path / "in"), "--quiet"]) == 3
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
    assert make_shards.main(["validate", "--need", "pair", "--input", str(tmp_path), "--quiet", "--json"]) == 3
    faults = {k: v["faults"] for k, v in json.loads(capfd.readouterr().out)["shards"].items()}
    assert faults == {
        str(tmp_path / "0.tar"): {"sizes.json says 2 samples": 1},
        str(tmp_path / "1.tar"): {"repeated key": 1},
    }
