"""Checkpoints in and out: every layout gives its source towers' features, and is written as every other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from checkpoint_fixtures import save_clip, save_released, save_siglip, tiny_siglip_tower
from evaluation_fixtures import TINY, picture, tiny_clip, write_config
from open_clip_triplet.errors import CheckpointError
from open_clip_triplet.evaluation.checkpoints.convert import to_open_clip, to_transformers
from open_clip_triplet.evaluation.checkpoints.export import compare, export
from open_clip_triplet.evaluation.checkpoints.load import load
from open_clip_triplet.evaluation.checkpoints.spec import CheckpointSpec, identify

transformers = pytest.importorskip("transformers")
CAPTIONS = ["a dog to the left of a cat", "a cat to the left of a dog", "Two RED cubes, one blue sphere"]


def unit(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(x.float(), dim=-1)


def clip_features(folder: Path, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of a ``CLIPModel`` folder by transformers alone."""
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(
        CAPTIONS, padding="max_length", truncation=True, return_tensors="pt",
        max_length=model.config.text_config.max_position_embeddings,
    )
    with torch.no_grad():
        out = model(**tokens, pixel_values=images)
    return unit(out.image_embeds), unit(out.text_embeds)


def loaded_features(path: Path, images: torch.Tensor, **options) -> tuple[torch.Tensor, torch.Tensor]:
    loaded = load(CheckpointSpec(**{"model": "", "pretrained": str(path), **options}))
    with torch.no_grad():
        return unit(loaded.model.encode_image(images)), unit(loaded.model.encode_text(loaded.tokenizer(CAPTIONS)))


def assert_same(found, expected):
    for x, y in zip(found, expected):
        assert x.shape == y.shape and (x - y).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("prefix", "positions", "nested"),
    [("model.", 64, False), ("model.", 77, True), ("module.clip.", 77, False), ("", 64, True)],
)
def test_released_towers_give_what_transformers_gives(tmp_path, prefix, positions, nested):
    released, clip = save_released(tmp_path, prefix, nested=nested, positions=positions)
    images = torch.randn(3, 3, 32, 32)
    assert_same(loaded_features(released, images), clip_features(clip, images))


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, tuple[Path, Path]]:
    """Layout -> (folder, ``CLIPModel`` folder with the same weights); one QuickGELU, one GELU and 20 positions."""
    folder = tmp_path_factory.mktemp("sources")
    clip = save_clip(folder / "gelu", act="gelu", positions=20)
    return {"tripletclip": save_released(folder), "transformers": (clip, clip)}


@pytest.mark.parametrize("source", ["tripletclip", "transformers"])
@pytest.mark.parametrize("to", ["open_clip", "tripletclip", "pt", "transformers"])
def test_each_layout_is_written_as_any_other(tmp_path, sources, source, to):
    folder, clip = sources[source]
    images = torch.randn(2, 3, 32, 32)
    there, difference = export(CheckpointSpec("", str(folder)), tmp_path / to, to)
    assert difference < 1e-5
    options = {}
    if to == "pt":
        options = {"model": "model_config", "model_config": str(there / "model_config.json")}
        there = there / "epoch_0.pt"
    assert_same(loaded_features(there, images, **options), clip_features(clip, images))


def test_from_openclip_back_to_transformers(tmp_path, sources):
    _, clip = sources["transformers"]
    there, _ = export(CheckpointSpec("", str(clip)), tmp_path / "there")
    back, _ = export(CheckpointSpec("", str(there)), tmp_path / "back", "transformers")
    before, after = (transformers.CLIPModel.from_pretrained(folder).state_dict() for folder in (clip, back))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_an_openclip_run_goes_to_transformers_diffusers_and_sentence_transformers(tmp_path):
    model, preprocess, tokenizer = tiny_clip()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "epoch_1.pt")
    spec = CheckpointSpec("tiny-eval", str(tmp_path / "epoch_1.pt"), model_config=str(write_config(tmp_path)))
    folder, _ = export(spec, tmp_path / "hf", "transformers")
    assert {oct(f.stat().st_mode & 0o777) for f in folder.iterdir()} == {"0o644"}
    image = preprocess(picture(0))[None]
    with torch.no_grad():
        expected = unit(model.encode_image(image)), unit(model.encode_text(tokenizer(CAPTIONS)))
    assert_same(clip_features(folder, image), expected)
    processor = transformers.CLIPImageProcessor.from_pretrained(folder)
    pixels = processor(images=picture(0), return_tensors="pt").pixel_values
    assert (pixels - image).abs().mean() < 0.02  # its own resizing, of 8-bit images

    text = transformers.CLIPTextModelWithProjection.from_pretrained(folder).eval()
    tokens = transformers.CLIPTokenizer.from_pretrained(folder)(CAPTIONS, padding=True, return_tensors="pt")
    with torch.no_grad():
        assert (unit(text(input_ids=tokens.input_ids).text_embeds) - expected[1]).abs().max() < 1e-5

    sentence_transformers = pytest.importorskip("sentence_transformers")
    from sentence_transformers.models import CLIPModel

    encoder = sentence_transformers.SentenceTransformer(modules=[CLIPModel(str(folder))], device="cpu")
    assert (unit(torch.as_tensor(encoder.encode(CAPTIONS))) - expected[1]).abs().max() < 1e-5


def test_the_text_tower_drives_a_diffusers_pipeline(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    clip = save_clip(tmp_path / "clip", act="gelu")
    folder, _ = export(CheckpointSpec("", str(clip)), tmp_path / "out", "transformers")
    text = transformers.CLIPTextModel.from_pretrained(folder)
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(16, 32), layers_per_block=1, sample_size=8, in_channels=4, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16, attention_head_dim=4, norm_num_groups=8,
    )
    vae = diffusers.AutoencoderKL(block_out_channels=(16,), norm_num_groups=8, latent_channels=4, sample_size=16)
    pipeline = diffusers.StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=transformers.CLIPTokenizer.from_pretrained(folder), unet=unet,
        scheduler=diffusers.DDIMScheduler(), safety_checker=None, feature_extractor=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline("a red cube", num_inference_steps=1, guidance_scale=1.0, output_type="np").images
    with torch.no_grad():
        states = transformers.CLIPTextModel.from_pretrained(clip)(
            pipeline.tokenizer("a red cube", padding="max_length", return_tensors="pt").input_ids
        ).last_hidden_state
        used, _ = pipeline.encode_prompt("a red cube", "cpu", 1, False)
    assert drawn.shape[0] == 1 and (used - states).abs().max() < 1e-5


def test_siglip_is_read_exactly_and_fits_openclips_tower(tmp_path, monkeypatch):
    tiny_siglip_tower(monkeypatch)
    folder = save_siglip(tmp_path / "siglip", act="gelu")
    model = transformers.SiglipModel.from_pretrained(folder).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(
        CAPTIONS, padding="max_length", truncation=True, max_length=24, return_tensors="pt"
    ).input_ids
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = unit(model.vision_model(images).pooler_output), unit(model.text_model(tokens).pooler_output)
    assert_same(loaded_features(folder, images), expected)
    state = model.state_dict()
    there = to_open_clip(state, "siglip")
    back = to_transformers(there, "siglip")
    assert all(torch.equal(back[name], x) for name, x in state.items() if not name.endswith("position_ids"))
    written, difference = export(CheckpointSpec("", str(folder)), tmp_path / "open_clip")
    assert difference < 1e-5
    assert float(load(CheckpointSpec("", str(written))).model.logit_bias) == pytest.approx(float(state["logit_bias"]))
    again, _ = export(CheckpointSpec("", str(written)), tmp_path / "again", "transformers")
    assert_same(loaded_features(again, images), expected)
    # as released, with the tanh approximation of GELU that timm's tower does not have
    tanh = save_siglip(tmp_path / "tanh", act="gelu_pytorch_tanh")
    _, difference = export(CheckpointSpec("", str(tanh)), tmp_path / "tanh-open_clip")
    assert 0 < difference < 1e-2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32}}, "ResNet image tower"),
        ({"vision_cfg": {**TINY["vision_cfg"], "ls_init_value": 0.1}}, "vision_cfg.ls_init_value"),
        ({"vision_cfg": {**TINY["vision_cfg"], "pool_type": "avg"}}, "pooling other"),
        ({"text_cfg": {**TINY["text_cfg"], "no_causal_mask": True}}, "without causal mask"),
        ({"init_logit_bias": -10}, "logit_bias"),
    ],
)
def test_what_transformers_cannot_represent_is_refused_by_name(tmp_path, change, says):
    from open_clip.model import CLIP

    config = write_config(tmp_path, "tiny-odd", **change)
    torch.save(CLIP(**json.loads(config.read_text())).state_dict(), tmp_path / "odd.pt")
    spec = CheckpointSpec("tiny-odd", str(tmp_path / "odd.pt"), model_config=str(config))
    with pytest.raises(CheckpointError, match=says):
        export(spec, tmp_path / "out", "transformers")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_siglip_training_and_short_contexts_evaluate_as_trained(tmp_path):
    from open_clip.model import CLIP

    config = {**TINY, "text_cfg": {**TINY["text_cfg"], "context_length": 20}, "init_logit_bias": -10}
    torch.manual_seed(1)
    model = CLIP(**config).eval()
    run = tmp_path / "run" / "checkpoints" / "epoch_1.pt"
    run.parent.mkdir(parents=True)
    torch.save({"state_dict": model.state_dict()}, run)
    (tmp_path / "run" / "params.txt").write_text("model: tiny-eval\nsiglip: True\nforce_context_length: 20\n")
    loaded = load(CheckpointSpec("tiny-eval", str(run), model_config=str(write_config(tmp_path))))
    tokens = loaded.tokenizer(CAPTIONS)
    assert tokens.shape == (3, 20) and float(loaded.model.logit_bias) == -10
    with torch.no_grad():
        assert torch.allclose(loaded.model.encode_text(tokens), model.encode_text(tokens), atol=1e-6)


def test_no_tokenizer_files_no_score(tmp_path):
    clip = save_clip(tmp_path / "clip")
    before = identify(CheckpointSpec("", str(clip)), lambda path: path.read_bytes().hex()[:64])
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (clip / name).unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match="no tokenizer or image processor"):
        load(CheckpointSpec("", str(clip)))
    assert identify(CheckpointSpec("", str(clip)), lambda path: path.read_bytes().hex()[:64]) != before


def test_a_tokenizer_that_does_not_tell_captions_apart_is_caught(tmp_path):
    clip = save_clip(tmp_path / "clip")
    for name in ("tokenizer.json", "merges.txt"):
        (clip / name).unlink(missing_ok=True)
    (clip / "vocab.json").write_text('{"<|startoftext|>": 0, "<|endoftext|>": 1}')
    (clip / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(CheckpointError, match="does not tell captions apart|cannot be loaded"):
        load(CheckpointSpec("", str(clip)))


def test_code_in_a_folder_is_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clip = save_clip(tmp_path / "clip")
    hub, _ = export(CheckpointSpec("", str(clip)), tmp_path / "hub")
    evil = "from pathlib import Path\nPath('executed').touch()\nclass Evil:\n    pass\n"
    for folder in (clip, hub):
        (folder / "evil.py").write_text(evil)
    config = json.loads((hub / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"].update(hf_tokenizer_name="x", tokenizer_kwargs={"trust_remote_code": True})
    (hub / "open_clip_config.json").write_text(json.dumps(config))
    asks = {"auto_map": {"AutoTokenizer": ["evil.Evil", None], "AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}}
    (hub / "tokenizer_config.json").write_text(json.dumps({**asks, "tokenizer_class": "Evil"}))
    (hub / "config.json").write_text(json.dumps({**asks, "model_type": "evil"}))
    with pytest.raises(CheckpointError):
        load(CheckpointSpec("", str(hub)))
    said = json.loads((clip / "config.json").read_text())
    (clip / "config.json").write_text(json.dumps({**said, **asks, "trust_remote_code": True}))
    load(CheckpointSpec("", str(clip)))  # a CLIP config is read as one, whatever code lies beside it
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ("image_interpolation: nonsense\n", "image_interpolation: nonsense; known: bicubic"),
        ("image_mean: [0.5, nan, 0.5]\n", "image_mean"),
        ("image_std: [0.5, 0.0, 0.5]\n", "must be positive"),
        ("image_mean: {}\n", "finite numbers"),
        ("force_image_size: huge\n", "which is no size"),
    ],
)
def test_nonsense_in_params_is_one_line(tmp_path, params, says):
    run = tmp_path / "run" / "checkpoints" / "epoch_1.pt"
    run.parent.mkdir(parents=True)
    torch.save({"state_dict": tiny_clip()[0].state_dict()}, run)
    (tmp_path / "run" / "params.txt").write_text(params)
    with pytest.raises(CheckpointError, match=says):
        load(CheckpointSpec("tiny-eval", str(run), model_config=str(write_config(tmp_path))))


@pytest.mark.parametrize("junk", [b"", b"junk", b"\xff" * 64, (10**6).to_bytes(8, "little") + b"{}"])
def test_junk_safetensors_is_one_line(tmp_path, junk):
    (tmp_path / "w.safetensors").write_bytes(junk)
    spec = CheckpointSpec("tiny-eval", str(tmp_path / "w.safetensors"), model_config=str(write_config(tmp_path)))
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        load(spec)
    released, _ = save_released(tmp_path)
    (released / "text-encoder" / "model.safetensors").write_bytes(junk)
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        load(CheckpointSpec("", str(released)))


def test_a_model_from_a_folder_takes_a_runs_weights(tmp_path):
    """What a run started from a converted folder leaves: --model local-dir:FOLDER, --pretrained epoch_1.pt."""
    hub, _ = export(CheckpointSpec("", str(save_clip(tmp_path / "clip"))), tmp_path / "hub")
    other, _ = export(CheckpointSpec("", str(save_clip(tmp_path / "other", seed=3))), tmp_path / "pt", "pt")
    model = CheckpointSpec(f"local-dir:{hub}", str(other / "epoch_0.pt"))
    assert compare(load(model), load(CheckpointSpec("", str(tmp_path / "other")))) < 1e-5
