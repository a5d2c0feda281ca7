"""Benchmarks during training: run at OpenCLIP's validation frequency and logged beside its metrics."""

import json

import pytest

from conftest import picture, train, train_argv
from evaluation_fixtures import write_json, write_paired_shard, write_sugarcrepe
from open_clip_triplet import options


@pytest.fixture
def data(tmp_path):
    write_sugarcrepe(tmp_path, dict.fromkeys(("replace_obj", "replace_att", "replace_rel", "add_obj"), 8))
    write_paired_shard(tmp_path / "tripletdata" / "0.tar", range(6))
    write_json(tmp_path / "tripletdata" / "sizes.json", {"0.tar": 6})
    return tmp_path


def test_benchmarks_land_in_the_log(tmp_path, data, tiny_config, paired_shards):
    argv = train_argv(
        tiny_config,
        tmp_path / "logs",
        "run",
        **{
            "train-data": paired_shards,
            "loss": "triplet",
            "epochs": 2,
            "val-frequency": 2,
            "save-logs": None,
        },
    ) + ["--eval-benchmarks", "sugarcrepe,tripletdata", "--eval-data-root", str(data), "--eval-allow-partial"]
    train(argv)
    lines = [
        json.loads(line)
        for line in (tmp_path / "logs" / "run" / "checkpoints" / "results.jsonl").read_text().splitlines()
    ]
    assert len(lines) == 1  # two epochs, validation due after the second
    found = lines[0]
    assert 0 <= found["sugarcrepe-partial/add_obj/accuracy"] <= 1  # 8 of 2,062 items: called partial
    assert 0 <= found["tripletdata/group"] <= min(found["tripletdata/text"], found["tripletdata/image"])


def test_benchmarks_run_beside_imagenet_alone(tmp_path, data, tiny_config):
    """No training and no --val-data: one evaluation of a model."""
    (tmp_path / "imagenet" / "n0").mkdir(parents=True)
    (tmp_path / "imagenet" / "n0" / "0.jpg").write_bytes(picture(1))
    flags = {"imagenet-val": tmp_path / "imagenet", "zeroshot-frequency": 0, "save-logs": None}
    train(train_argv(tiny_config, tmp_path / "logs", "run", **flags)
          + ["--eval-benchmarks", "sugarcrepe", "--eval-data-root", str(data), "--eval-allow-partial"])
    found = json.loads((tmp_path / "logs" / "run" / "checkpoints" / "results.jsonl").read_text())
    assert "sugarcrepe-partial/add_obj/accuracy" in found


def test_lacking_data_is_refused_before_training(tmp_path, data, tiny_config, paired_shards):
    argv = ["--loss", "triplet", "--train-data", paired_shards, "--eval-benchmarks"]
    root = ["--eval-data-root", str(data)]
    with pytest.raises(options.UsageError, match="add_obj: 8 of 2062 items(.|\n)*--eval-allow-partial"):
        train(argv + ["sugarcrepe", *root])
    with pytest.raises(options.UsageError, match="cola: no data under"):
        train(argv + ["cola", *root])
    with pytest.raises(options.UsageError, match="unknown benchmark"):
        train(argv + ["sugarcrape", *root])
