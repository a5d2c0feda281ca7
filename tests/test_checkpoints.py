"""Checkpoints: identified without loading, loaded with checks, exported and loaded back."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation_fixtures import TINY, picture, tiny_clip, write_config
from open_clip_triplet.errors import CheckpointError
from open_clip_triplet.evaluation.checkpoints.export import export
from open_clip_triplet.evaluation.checkpoints.load import load
from open_clip_triplet.evaluation.checkpoints.spec import CheckpointSpec, identify
from open_clip_triplet.evaluation.hashes import file_digest

CAPTIONS = ["a dog", "two cats on a red sofa"]


def save(path: Path, seed=0, prefix="module.", **more) -> Path:
    state = {prefix + name: x for name, x in tiny_clip(seed)[0].state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"epoch": 1, "name": "run", "state_dict": state, **more}, path)
    return path


def spec(tmp_path, pretrained, **options) -> CheckpointSpec:
    config = options.pop("model_config", None) or write_config(tmp_path)
    return CheckpointSpec(
        model=Path(config).stem, pretrained=str(pretrained), model_config=str(config), **options
    )


def features(loaded):
    with torch.no_grad():
        x = loaded.model.encode_image(loaded.preprocess(picture(0))[None])
        y = loaded.model.encode_text(loaded.tokenizer(CAPTIONS))
    return torch.nn.functional.normalize(torch.cat([x, y]).float(), dim=-1)


def test_training_checkpoint_loads_as_the_model_it_was(tmp_path):
    path = save(tmp_path / "epoch_1.pt", optimizer={"state": {}, "param_groups": []})
    found = features(load(spec(tmp_path, path)))
    model, preprocess, tokenizer = tiny_clip()
    with torch.no_grad():
        expected = torch.cat(
            [
                model.encode_image(preprocess(picture(0))[None], normalize=True),
                model.encode_text(tokenizer(CAPTIONS), normalize=True),
            ]
        )
    assert torch.allclose(found, expected, atol=1e-6)


def test_export_comes_back_the_same(tmp_path):
    path = save(tmp_path / "epoch_1.pt")
    folder, difference = export(spec(tmp_path, path), tmp_path / "hub")
    assert difference == 0
    assert sorted(f.name for f in folder.iterdir()) == [
        "open_clip_config.json",
        "open_clip_model.safetensors",
    ]
    again = load(CheckpointSpec(model="ignored", pretrained=str(folder)))
    assert torch.equal(features(again), features(load(spec(tmp_path, path))))
    with pytest.raises(CheckpointError, match="already holds a model"):
        export(spec(tmp_path, path), folder)


def test_identity_follows_weights_config_and_precision(tmp_path):
    a, b = save(tmp_path / "a.pt", 0), save(tmp_path / "b.pt", 1)
    facts = identify(spec(tmp_path, a), file_digest)
    assert facts == identify(spec(tmp_path, a), file_digest)
    assert facts["weights"] == file_digest(a) and facts["model_config"] == TINY
    others = [
        identify(spec(tmp_path, b), file_digest),
        identify(spec(tmp_path, a, precision="bf16"), file_digest),
        identify(spec(tmp_path, a, force_image_size=64), file_digest),
        identify(spec(tmp_path, a, model_config=write_config(tmp_path, quick_gelu=True)), file_digest),
    ]
    assert all(other != facts for other in others)
    folder, _ = export(spec(tmp_path, a), tmp_path / "hub")
    assert identify(CheckpointSpec("x", str(folder)), file_digest)["weights"] != facts["weights"]
    tag = identify(CheckpointSpec("ViT-B-32", "laion2b_s34b_b79k"), file_digest)
    assert tag["weights"] == "tag:laion2b_s34b_b79k" and tag["model_config"]["embed_dim"] == 512


def test_identity_follows_the_files_of_a_tokenizer_elsewhere(tmp_path):
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "vocab.json").write_text("{}")
    text = {**TINY["text_cfg"], "hf_tokenizer_name": str(tokenizer)}
    named = spec(tmp_path, save(tmp_path / "a.pt"), model_config=write_config(tmp_path, "tiny-tok", text_cfg=text))
    before = identify(named, file_digest)
    (tokenizer / "merges.txt").write_text("a b\n")
    assert identify(named, file_digest) != before


@pytest.mark.parametrize(
    "model, pretrained, says",
    [
        ("ViT-B-33", "openai", "ViT-B-32"),
        ("ViT-B-32", "logs/none/epoch_1.pt", "no such file"),
    ],
)
def test_unknown_names_are_caught_before_loading(model, pretrained, says):
    with pytest.raises(CheckpointError, match=says):
        identify(CheckpointSpec(model, pretrained), file_digest)


def test_quick_gelu_mismatch_is_caught(tmp_path):
    with pytest.raises(CheckpointError, match="ViT-B-32-quickgelu, or --force-quick-gelu"):
        load(CheckpointSpec("ViT-B-32", "openai"))
    with pytest.raises(CheckpointError, match="trained with GELU"):
        load(CheckpointSpec("ViT-B-32", "laion2b_s34b_b79k", force_quick_gelu=True))
    state = {**tiny_clip()[0].state_dict(), "input_resolution": torch.tensor(32)}
    torch.save(state, tmp_path / "openai.pt")
    with pytest.raises(CheckpointError, match="QuickGELU"):
        load(spec(tmp_path, tmp_path / "openai.pt"))
    params = tmp_path / "run" / "params.txt"
    path = save(tmp_path / "run" / "checkpoints" / "epoch_1.pt")
    params.write_text("force_quick_gelu: True\nmodel: tiny-eval\n")
    with pytest.raises(CheckpointError, match="--force-quick-gelu"):
        load(spec(tmp_path, path))
    load(spec(tmp_path, path, force_quick_gelu=True))
    params.write_text("force_quick_gelu: False\nmodel: tiny-eval\n")
    with pytest.raises(CheckpointError, match="no --force-quick-gelu"):
        load(spec(tmp_path, path, force_quick_gelu=True))


def test_another_model_or_image_size_is_caught(tmp_path):
    path = save(tmp_path / "run" / "checkpoints" / "epoch_1.pt")
    vision = {**TINY["vision_cfg"], "image_size": 64}
    larger = write_config(tmp_path, "tiny-larger", vision_cfg=vision)
    with pytest.raises(
        CheckpointError, match="images of 32 pixels, tiny-larger takes 64: use --force-image-size 32"
    ):
        load(spec(tmp_path, path, model_config=larger))
    load(spec(tmp_path, path, model_config=larger, force_image_size=32))
    deeper = write_config(tmp_path, "tiny-deeper", text_cfg={**TINY["text_cfg"], "layers": 2})
    with pytest.raises(CheckpointError, match="does not load as tiny-deeper"):
        load(spec(tmp_path, path, model_config=deeper))
    (tmp_path / "run" / "params.txt").write_text("model: RN50\n")
    with pytest.raises(CheckpointError, match="trained as --model RN50"):
        load(spec(tmp_path, path))


def test_a_forced_image_size_is_the_trained_one(tmp_path):
    """A ResNet that averages over places has no positions, so its weights fit images of any size."""
    import open_clip

    vision = {"timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "linear", "image_size": 32}
    config = write_config(tmp_path, "tiny-resnet", vision_cfg=vision)
    open_clip.add_model_config(config)
    path = tmp_path / "run" / "checkpoints" / "epoch_1.pt"
    path.parent.mkdir(parents=True)
    torch.save(open_clip.create_model("tiny-resnet").state_dict(), path)
    pixels = {None: 32, 64: 64}
    for size, expected in pixels.items():  # without a run, the flag says how it was trained
        loaded = load(spec(tmp_path, path, model_config=config, force_image_size=size))
        assert loaded.preprocess(picture(0)).shape[-1] == expected
    for given, trained, other in (("None", 32, 64), ("[64, 64]", 64, 32)):
        (tmp_path / "run" / "params.txt").write_text(f"model: tiny-resnet\nforce_image_size: {given}\n")
        with pytest.raises(CheckpointError, match=f"images of {trained} pixels, not {other}: leave out"):
            load(spec(tmp_path, path, model_config=config, force_image_size=other))
        load(spec(tmp_path, path, model_config=config, force_image_size=trained))
    with pytest.raises(CheckpointError, match="images of 224 pixels, not 64"):
        load(CheckpointSpec("ViT-B-32-quickgelu", "openai", force_image_size=64))
    folder, _ = export(spec(tmp_path, save(tmp_path / "epoch_1.pt")), tmp_path / "hub")
    with pytest.raises(CheckpointError, match="images of 32 pixels, not 64"):
        load(CheckpointSpec("", str(folder), force_image_size=64))


def test_images_are_prepared_as_the_run_did(tmp_path):
    path = save(tmp_path / "run" / "checkpoints" / "epoch_1.pt")
    plain, before = load(spec(tmp_path, path)), identify(spec(tmp_path, path), file_digest)
    params = tmp_path / "run" / "params.txt"
    params.write_text("image_mean: None\nimage_std: None\nimage_interpolation: None\n")
    assert identify(spec(tmp_path, path), file_digest) == before
    params.write_text(
        "image_mean: [0.5, 0.5, 0.5]\nimage_std: [0.25, 0.25, 0.25]\nimage_resize_mode: squash\n"
    )
    assert identify(spec(tmp_path, path), file_digest) != before  # other embeddings, another store
    loaded = load(spec(tmp_path, path))
    wide = picture(0, size=(96, 32))
    squashed = np.asarray(wide.resize((32, 32), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    expected = torch.from_numpy((squashed - 0.5) / 0.25).permute(2, 0, 1)
    assert torch.allclose(loaded.preprocess(wide), expected, atol=1e-5)
    assert not torch.allclose(plain.preprocess(wide), expected, atol=0.1)
    params.write_text("image_mean: half\n")
    with pytest.raises(CheckpointError, match="image_mean: half, which is no list"):
        load(spec(tmp_path, path))


def test_missing_or_foreign_tokenizer_is_caught(tmp_path):
    path = save(tmp_path / "epoch_1.pt")
    text = {**TINY["text_cfg"], "hf_tokenizer_name": str(tmp_path / "no-such-tokenizer")}
    with pytest.raises(CheckpointError, match="tokenizer cannot be loaded"):
        load(spec(tmp_path, path, model_config=write_config(tmp_path, "tiny-tok", text_cfg=text)))
    small = write_config(tmp_path, "tiny-vocab", text_cfg={**TINY["text_cfg"], "vocab_size": 100})
    state = tiny_clip()[0].state_dict()
    state["token_embedding.weight"] = state["token_embedding.weight"][:100]
    torch.save(state, tmp_path / "small.pt")
    with pytest.raises(CheckpointError, match="names another tokenizer"):
        load(spec(tmp_path, tmp_path / "small.pt", model_config=small))


def test_the_runs_model_is_the_default(tmp_path):
    path = save(tmp_path / "run" / "checkpoints" / "epoch_1.pt")
    assert CheckpointSpec.parse(str(path)).model == "ViT-B-32"
    (tmp_path / "run" / "params.txt").write_text("model: RN50\n")
    assert CheckpointSpec.parse(str(path)).model == "RN50"
    assert CheckpointSpec.parse(str(path), model="ViT-L-14").model == "ViT-L-14"


@pytest.mark.parametrize("name", ["it's tiny", "tiny-own"])
def test_the_runs_model_config_is_the_default(tmp_path, name):
    path = save(tmp_path / "run" / "checkpoints" / "epoch_1.pt")
    config, other = write_config(tmp_path, name), write_config(tmp_path, "tiny-other")
    params = f"model: {name}\nmodel_config: {[str(other), str(config)]}\n"
    (tmp_path / "run" / "params.txt").write_text(params)
    parsed = CheckpointSpec.parse(str(path))
    assert (parsed.model, parsed.model_config) == (name, str(config))
    assert features(load(parsed)).shape[0] == 3
    assert CheckpointSpec.parse(str(path), model="ViT-B-32").model_config is None
    config.unlink()
    assert CheckpointSpec.parse(str(path)).model_config is None
    with pytest.raises(CheckpointError, match=f"unknown model .*{name}.*; open_clip.list_models.* --model-config"):
        load(CheckpointSpec.parse(str(path)))


class Payload:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def test_a_file_with_code_in_it_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "extra": Payload()}, tmp_path / "evil.pt")
    (tmp_path / "evil.pkl.pt").write_bytes(pickle.dumps(Payload()))
    for name in ("evil.pt", "evil.pkl.pt"):
        with pytest.raises(CheckpointError, match="more than tensors"):
            load(spec(tmp_path, tmp_path / name))
    assert not (tmp_path / "executed").exists()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "jit.pt")
    with pytest.raises(CheckpointError, match="--pretrained openai"):
        load(spec(tmp_path, tmp_path / "jit.pt"))


def test_labels(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=1" / "v1.5").mkdir(parents=True)

    def label(text):
        return CheckpointSpec.parse(text, model="ViT-B-32").label

    assert label("ours=logs/a/checkpoints/epoch_3.pt") == "ours"
    assert label("logs/a/checkpoints/epoch_3.pt") == "a-epoch_3"
    assert label("weights/b.safetensors") == "b"
    assert label("openai") == "ViT-B-32-openai"
    assert label("runs/lr=1/w.pt") == "w"
    assert label("lr=1") == "lr=1"  # which is there, and so no name
    assert label("lr=1/v1.5") == "v1.5"
    # a folder or repository brings its own model; results do not say ViT-B-32 of it
    assert [CheckpointSpec.parse(text).model for text in ("lr=1/v1.5", "a/b", "openai")] == ["", "", "ViT-B-32"]


def test_transformers_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = write_transformers(transformers, tmp_path / "hf")
    loaded = load(CheckpointSpec("ignored", str(folder)))
    clip = transformers.CLIPModel.from_pretrained(folder).eval()
    tokens = loaded.tokenizer(CAPTIONS)
    image = loaded.preprocess(picture(0))[None]
    with torch.no_grad():
        out = clip(input_ids=tokens, pixel_values=image)
    expected = torch.cat([out.image_embeds, out.text_embeds])
    assert image.shape == (1, 3, 32, 32)
    assert torch.allclose(features(loaded), torch.nn.functional.normalize(expected, dim=-1), atol=1e-5)
    load(CheckpointSpec("ignored", str(folder), force_image_size=32, force_quick_gelu=True))  # as it was trained
    with pytest.raises(CheckpointError, match="images of 32 pixels, not 64: leave out --force-image-size"):
        load(CheckpointSpec("ignored", str(folder), force_image_size=64))
    clip.config.text_config.hidden_act = "gelu"
    clip.config.save_pretrained(folder)
    with pytest.raises(CheckpointError, match="trained with gelu: leave out --force-quick-gelu"):
        load(CheckpointSpec("ignored", str(folder), force_quick_gelu=True))
    (folder / "tokenizer.json").unlink()
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "preprocessor_config.json"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match="no tokenizer or image processor"):
        load(CheckpointSpec("ignored", str(folder)))
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(CheckpointError, match="neither"):
        load(CheckpointSpec("ignored", str(folder)))


def write_transformers(transformers, folder: Path) -> Path:
    """A tiny CLIPModel with a byte-level tokenizer and an image processor, as save_pretrained leaves them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", *map(chr, range(33, 127)), "Ġ"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="</s>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="</s>"
    )
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={
            **size,
            "vocab_size": len(vocabulary),
            "max_position_embeddings": 32,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 1,
        },
        vision_config={**size, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformers.CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)
    return folder


def test_a_crop_smaller_than_the_resized_image_is_refused(tmp_path):
    """OpenCLIP crops what it resized to; the copy would see more of each image than the source."""
    transformers = pytest.importorskip("transformers")
    folder = write_transformers(transformers, tmp_path / "hf")
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "size": {"shortest_edge": 40}}))
    with pytest.raises(CheckpointError, match="does not prepare images as the image processor does"):
        export(CheckpointSpec("", str(folder)), tmp_path / "out")
