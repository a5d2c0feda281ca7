"""To the hub and back, and the model card, against a local server that speaks the hub's API."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import yaml

from checkpoint_fixtures import save_released
from evaluation_fixtures import TINY, tiny_clip, write_config
from hub_stub import serving
from open_clip_triplet.errors import UsageError
from open_clip_triplet.evaluation import cli
from open_clip_triplet.evaluation.checkpoints.card import model_card
from open_clip_triplet.evaluation.checkpoints.export import compare
from open_clip_triplet.evaluation.checkpoints.load import load
from open_clip_triplet.evaluation.checkpoints.spec import CheckpointSpec
from report_fixtures import made

pytest.importorskip("transformers")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    import huggingface_hub.constants as constants

    with serving() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "hf_stub")
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        yield server


@pytest.fixture
def run(tmp_path):
    """A finished run with its params.txt."""
    checkpoint = tmp_path / "logs" / "triplet" / "checkpoints" / "epoch_1.pt"
    checkpoint.parent.mkdir(parents=True)
    torch.save({"state_dict": tiny_clip()[0].state_dict()}, checkpoint)
    (tmp_path / "logs" / "triplet" / "params.txt").write_text(
        "model: tiny-eval\nloss: triplet\ntrain_data: cc3m/{000..331}.tar\nbatch_size: 1024\ntotal_steps: 90000\n"
    )
    return checkpoint


def result(name: str) -> dict:
    metric = {"value": 0.6544, "low": 0.64, "high": 0.67}
    return {"schema": 1, "benchmark": "sugarcrepe", "title": "SugarCrepe", "checkpoint": {"name": name, "model": "x"},
            "complete": True, "items": 7511, "expected": 7511, "summary": {"overall": metric}, "subsets": {}}


def convert(tmp_path, run, *more) -> int:
    config = write_config(tmp_path)
    return cli.main(["convert", "--model-config", str(config), "--pretrained", f"ours={run}", "--output",
                     str(tmp_path / "out"), *more])


def test_push_and_load_from_the_hub(tmp_path, hub, run, capsys):
    assert convert(tmp_path, run, "--push-to-hub", "someone/triplet-tiny", "--private") == 0
    assert "pushed" in capsys.readouterr().err and hub.private == {"someone/triplet-tiny": True}
    files = hub.repositories["someone/triplet-tiny"]
    assert files.keys() == {f.name for f in (tmp_path / "out").iterdir()}
    assert {"README.md", "open_clip_config.json", "open_clip_model.safetensors"} <= files.keys()
    back = load(CheckpointSpec("", "hf-hub:someone/triplet-tiny"))
    assert compare(back, load(CheckpointSpec("", str(tmp_path / "out")))) == 0


def test_a_released_repository_is_loaded_by_its_name_without_its_code(tmp_path, hub):
    released, clip = save_released(tmp_path)
    hub.repositories["TripletCLIP/CC3M_Tiny"] = {
        str(f.relative_to(released)): f.read_bytes() for f in released.rglob("*") if f.is_file()
    }
    spec = CheckpointSpec("", "TripletCLIP/CC3M_Tiny")
    assert spec.label == "CC3M_Tiny"
    assert compare(load(spec), load(CheckpointSpec("", str(clip)))) < 1e-5
    assert not [path for _, path in hub.requests if path.endswith(".py")]


def test_what_the_hub_answers_is_one_line(tmp_path, hub, run, capsys, monkeypatch):
    assert cli.main(["convert", "--pretrained", "nobody/nothing", "--output", str(tmp_path / "x")]) == 2
    assert "nobody/nothing" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert convert(tmp_path, run, "--push-to-hub", "someone/triplet-tiny") == 2
    err = capsys.readouterr().err
    assert "not pushed" in err and (tmp_path / "out" / "open_clip_config.json").is_file()


def test_the_card_says_data_method_steps_and_results(tmp_path, run):
    (tmp_path / "r").mkdir()
    for name in ("ours", "theirs"):
        (tmp_path / "r" / f"{name}.json").write_text(json.dumps(result(name)))
    assert convert(tmp_path, run, "--results", str(tmp_path / "r"), "--license", "cc-by-nc-4.0") == 0
    text = (tmp_path / "out" / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    header = yaml.safe_load(header)
    assert header["license"] == "cc-by-nc-4.0" and header["library_name"] == "open_clip" and "triplet" in header["tags"]
    (found,) = header["model-index"][0]["results"]
    assert found["dataset"]["name"] == "SugarCrepe" and found["metrics"][0]["value"] == 65.44
    for line in ("| `--train-data` | `cc3m/{000..331}.tar` |", "| `--total-steps` | `90000` |", "`--loss triplet`",
                 "| SugarCrepe | overall | 65.44 | 64.00 to 67.00 | 7511 |"):
        assert line in body


def test_the_card_counts_and_labels_each_subset_by_itself(tmp_path):
    retrieval = made("retrieval", "ours", {s: {"i2t_r1": 300} for s in ("mscoco", "flickr30k", "flickr8k")})
    retrieval["subsets"]["flickr8k"] |= {"complete": False, "items": 20}
    (tmp_path / "r.json").write_text(json.dumps(retrieval))
    spec = CheckpointSpec("ViT-B-32", "openai", name="ours")
    text = model_card(spec, "open_clip", results=[str(tmp_path / "r.json")])(TINY)
    assert "| Image-text retrieval | flickr30k i2t_r1 | 60.00 | 55.65 to 64.20 | 500 |" in text
    with pytest.raises(UsageError, match="none of 'theirs'; there are: ours"):
        model_card(replace(spec, name="theirs"), "open_clip", results=[str(tmp_path / "r.json")])
    assert "| Image-text retrieval (partial) | flickr8k i2t_r1 | 60.00 | 55.65 to 64.20 | 20 |" in text
