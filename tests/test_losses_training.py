"""The added terms, losses of the user's own and the log's columns, through OpenCLIP's own ``main``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from conftest import checkpoint, paired_sample, train, train_argv
from open_clip_triplet.errors import ShardError, UsageError
from open_clip_triplet.shards import ShardWriter, write_sizes
from test_losses_extras import OWN_LOSS


def logged(logs: Path, name: str) -> list[dict[str, float]]:
    """Every number of every logged step, as OpenCLIP printed it."""
    lines = re.findall(r"Train Epoch: .*", (logs / name / "out.log").read_text())
    return [{key: float(value) for key, value in re.findall(r"(\w+): (-?[\d.]+(?:e-?\d+)?)", line)} for line in lines]


@pytest.fixture(scope="module")
def shards_with_units(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("units")
    with ShardWriter(folder / "0.tar") as writer:
        for index in range(32):
            sample = paired_sample(index)
            words, others = sample["txt"].split(), sample["neg.txt"].split()
            sample["json"]["units"] = [
                {"text": f"{words[1]} square", "neg_text": f"{others[1]} square"},
                {"text": f"number {index}", "neg_text": f"number {index + 1}"},
            ]
            writer.write(sample)
    write_sizes(folder, {"0.tar": 32})
    return f"{folder}/0.tar"


@pytest.mark.parametrize(
    ("flags", "terms"),
    [
        ({"loss": "negclip", "neg-scope": "none", "hard-negative-weight": 0.5}, {"Hard_negative_loss"}),
        ({"loss": "triplet", "margin": "adaptive", "plain-every": 2}, {"Margin_loss", "Plain_loss"}),
        ({"loss": "negclip", "neg-scope": "own", "units": 2, "paraphrase-weight": 0.5},
         {"Unit_loss", "Paraphrase_loss"}),
        ({"loss": "cyclip", "paraphrase-weight": 0.5, "caption-sampling": "random"}, {"Paraphrase_loss"}),
        ({"loss": "triplet", "teacher": "ema", "teacher-decay": 0.9}, {"Distill_loss"}),
    ],
    ids=["FSC-CLIP", "SPARCL+CLIC", "CS-CLIP+READ", "paraphrase", "DeGLA"],
)  # fmt: skip
def test_recipes_train(flags, terms, shards_with_units, tiny_config, tmp_path):
    train(train_argv(tiny_config, tmp_path, "run", **{"train-data": shards_with_units, "batch-size": 8, **flags}))
    steps = logged(tmp_path, "run")
    assert len(steps) == 4 and terms <= steps[-1].keys()
    for step in steps:
        shown = sum(value for name, value in step.items() if name.endswith("_loss"))
        stale = step.get("Plain_loss") is not None  # 3.x repeats terms that a step does not have
        assert stale or step["Loss"] == pytest.approx(shown, rel=1e-3)
    rows = checkpoint(tmp_path, "run")["triplet"]
    per_sample = 2 + ("paraphrase-weight" in flags) + 2 * flags.get("units", 0) - (flags["loss"] == "cyclip")
    assert rows["captions_seen"] == 32 * per_sample


def test_the_log_shows_what_the_method_does(paired_shards, tiny_config, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    flags = {"loss": "cyclip-triplet", "train-data": paired_shards, "report-to": "tensorboard"}
    train(train_argv(tiny_config, tmp_path, "run", **flags))
    names = ["Positive_loss", "Negative_loss", "Cyclic_loss", "Positive_similarity", "Neg_caption_similarity",
             "Neg_image_similarity", "Margin", "Group_score", "Loss"]  # fmt: skip
    assert all(list(step)[-9:] == names for step in logged(tmp_path, "run"))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert {f"train/{name.lower()}" for name in names} <= set(events.Tags()["scalars"])
    assert len(events.Scalars("train/group_score")) == 4


@pytest.mark.parametrize("kind", ["ema", "frozen"])
def test_a_teacher_continues_with_the_run(kind, paired_shards, tiny_config, tmp_path):
    """One epoch, then the second in another call: student and teacher as of two at once."""
    flags = {"loss": "triplet", "train-data": paired_shards, "lr-scheduler": "const", "teacher": kind}
    flags |= {"teacher-decay": 0.5} if kind == "ema" else {}
    train(train_argv(tiny_config, tmp_path, "whole", **{**flags, "epochs": 2}))
    train(train_argv(tiny_config, tmp_path, "parts", **flags))
    first = checkpoint(tmp_path, "parts")
    train([*train_argv(tiny_config, tmp_path, "parts", **{**flags, "epochs": 2}), "--resume", "latest"])
    whole, parts = (checkpoint(tmp_path, name, "epoch_2.pt") for name in ("whole", "parts"))
    for part in ("state_dict", "triplet_teacher"):
        assert whole[part].keys() == parts[part].keys()
        assert all(torch.equal(value, parts[part][name]) for name, value in whole[part].items())
    moved = [not torch.equal(value, first["triplet_teacher"][name]) for name, value in parts["triplet_teacher"].items()]
    assert any(moved) == (kind == "ema")
    distances = [step["Distill_loss"] for step in logged(tmp_path, "whole")]
    assert distances[0] < 1e-6 < distances[-1]  # the student starts as the teacher


def test_a_loss_of_the_users_own_trains(paired_shards, tiny_config, tmp_path, monkeypatch):
    (tmp_path / "my_losses.py").write_text(OWN_LOSS)
    monkeypatch.chdir(tmp_path)
    flags = {"loss": "my_losses:Cosine", "train-data": paired_shards, "neg-captions": 2}
    train(train_argv(tiny_config, tmp_path, "run", **flags))
    steps = logged(tmp_path, "run")
    assert steps[-1]["Cosine_loss"] == steps[-1]["Loss"] < steps[0]["Loss"]
    assert checkpoint(tmp_path, "run")["triplet"]["captions_seen"] == 64 * 3


def test_near_misses_are_suggested(tiny_config, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train(train_argv(tiny_config, tmp_path, "run", loss="tripplet"))
    assert "unknown loss 'tripplet'" in (error := capsys.readouterr().err) and "did you mean 'triplet'?" in error


def test_a_teacher_and_distillation_are_refused_together(paired_shards, tiny_config, tmp_path):
    flags = {"loss": "triplet", "train-data": paired_shards, "teacher": "ema"}
    with pytest.raises(UsageError, match="two teachers"):
        train(
            train_argv(
                tiny_config, tmp_path, "run", **flags, **{"distill-model": "RN50", "distill-pretrained": "x"}
            )
        )


def test_openclips_own_distillation_reaches_the_loss(paired_shards, tiny_config, tmp_path):
    """A teacher of OpenCLIP's: ``--distill-model`` with a checkpoint of an earlier run."""
    train(train_argv(tiny_config, tmp_path, "first", **{"loss": "triplet", "train-data": paired_shards}))
    weights = tmp_path / "first" / "checkpoints" / "epoch_1.pt"
    flags = {"loss": "triplet", "train-data": paired_shards, "distill-model": "tiny-test"}
    train(train_argv(tiny_config, tmp_path, "second", **flags, **{"distill-pretrained": weights}))
    assert all(step["Distill_loss"] > 0 for step in logged(tmp_path, "second"))


def test_units_that_no_sample_has_are_told(paired_shards, tiny_config, tmp_path):
    flags = {"loss": "negclip", "train-data": paired_shards, "units": 1}
    with pytest.raises((ShardError, UsageError), match="units"):
        train(train_argv(tiny_config, tmp_path, "run", **flags))
