"""``triplet-train --pretrained`` of every layout: training starts from those weights, and the result evaluates."""

from __future__ import annotations

import json

import httpx
import pytest
import torch

from checkpoint_fixtures import save_clip, save_released
from conftest import train, train_argv
from open_clip_triplet.errors import UsageError
from open_clip_triplet.evaluation.checkpoints.export import export
from open_clip_triplet.evaluation.checkpoints.load import load
from open_clip_triplet.evaluation.checkpoints.spec import CheckpointSpec
from open_clip_triplet.evaluation.checkpoints.training import open_clip_folder

pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def weights(tmp_path, name: str) -> dict[str, torch.Tensor]:
    return torch.load(tmp_path / "logs" / name / "checkpoints" / "epoch_1.pt", weights_only=True)["state_dict"]


def test_training_goes_on_from_the_released_layout(tmp_path, paired_shards, tiny_config):
    released, _ = save_released(tmp_path, positions=20)
    more = {"train-data": paired_shards, "model": None, "model-config": None, "pretrained": released, "lr": 0, "wd": 0}
    train(train_argv(tiny_config, tmp_path / "logs", "run", loss="triplet", **more))
    start = load(CheckpointSpec("", str(released))).model.clip
    found = weights(tmp_path, "run")
    assert torch.equal(found["token_embedding.weight"], start.text_model.embeddings.token_embedding.weight)
    assert found["positional_embedding"].shape[0] == 20
    # as the user would: no --model, the run says it
    loaded = load(CheckpointSpec.parse(str(tmp_path / "logs" / "run" / "checkpoints" / "epoch_1.pt")))
    assert loaded.tokenizer(["a dog"]).shape == (1, 20)
    assert len(list((tmp_path / "cache" / "open_clip_triplet" / "converted").glob("released-*"))) == 1


def test_files_and_tags_are_openclips(tmp_path):
    assert open_clip_folder("") is None and open_clip_folder("openai") is None
    (tmp_path / "epoch_1.pt").touch()
    assert open_clip_folder(str(tmp_path / "epoch_1.pt")) is None


def test_a_folder_of_openclips_is_taken_as_it_is(tmp_path):
    folder, _ = export(CheckpointSpec("", str(save_clip(tmp_path / "clip"))), tmp_path / "hub")
    for name in (str(folder), f"local-dir:{folder}"):
        assert open_clip_folder(name) == folder


def test_another_models_name_is_refused(tmp_path, paired_shards, tiny_config):
    clip = save_clip(tmp_path / "clip")
    argv = train_argv(tiny_config, tmp_path / "logs", "run", loss="triplet",
                      **{"train-data": paired_shards, "model": "ViT-B-32", "pretrained": clip})
    with pytest.raises(UsageError, match="--model ViT-B-32 has embed_dim 512, the checkpoint of --pretrained 12"):
        train(argv)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"pretrained": "none.pt"}, "--pretrained: 'none.pt' is neither a file nor a tag of .*its tags: none"),
        ({"distill-model": "RN50", "distill-pretrained": "opnai"}, "--distill-pretrained: 'opnai' .*its tags: openai"),
        ({"model": "ViT-B-32", "pretrained": "openai"}, "QuickGELU.*ViT-B-32-quickgelu, or --force-quick-gelu"),
    ],
)
def test_weights_that_are_not_there_or_of_another_activation_are_one_line(
    flags, message, tmp_path, paired_shards, tiny_config
):
    argv = train_argv(tiny_config, tmp_path / "logs", "run", loss="triplet", **{"train-data": paired_shards, **flags})
    with pytest.raises(UsageError, match=message):
        train(argv)


@pytest.mark.parametrize("error", [ConnectionError("no network"), httpx.ConnectError("no name")])
def test_what_is_no_checkpoint_is_one_line(error, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", fail)
    with pytest.raises(UsageError, match="--pretrained nobody/nothing"):
        open_clip_folder("nobody/nothing")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UsageError, match="model_type 'bert'"):
        open_clip_folder(str(tmp_path))
