"""Validation pairs as images in tensorboard, written and read back by tensorboard itself."""

import io
from argparse import Namespace

import pytest
from PIL import Image

from conftest import TINY_MODEL, train, train_argv
from open_clip_triplet.evaluation.encode import Encoder
from open_clip_triplet.inspect.training import NAME, log_pairs, pair_sheet
from open_clip_triplet.shards import expand_shards


@pytest.fixture(scope="module")
def encoder():
    import open_clip
    import torch
    from open_clip.model import CLIP

    torch.manual_seed(0)
    tokenizer = open_clip.SimpleTokenizer(context_length=16)
    return Encoder(CLIP(**TINY_MODEL).eval(), open_clip.image_transform(32, is_train=False), tokenizer)


def test_sheet_reaches_tensorboard(encoder, paired_shards, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    args = Namespace(tensorboard=True, tensorboard_path=str(tmp_path), wandb=False)
    for epoch in (1, 2):
        log_pairs(args, encoder, expand_shards(paired_shards), epoch)
    events = EventAccumulator(str(tmp_path)).Reload()
    logged = events.Images(NAME)
    assert [event.step for event in logged] == [1, 2]
    image = Image.open(io.BytesIO(logged[0].encoded_image_string))
    expected = pair_sheet(encoder, expand_shards(paired_shards), "after epoch 1")
    assert image.size == expected.size and image.convert("RGB").tobytes() == expected.tobytes()


def test_no_log_asked_for_costs_nothing(tmp_path):
    log_pairs(Namespace(tensorboard=False, tensorboard_path="", wandb=False), None, [], 1)


def test_what_goes_wrong_is_told_and_training_goes_on(encoder, tmp_path, caplog):
    log_pairs(Namespace(tensorboard=True, tensorboard_path=str(tmp_path), wandb=False), encoder, ["/no/such.tar"], 1)
    assert "No validation pairs in the logs: /no/such.tar" in caplog.text


def test_training_logs_pairs_at_each_validation(tiny_config, paired_shards, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    flags = {"loss": "triplet", "train-data": paired_shards, "val-data": paired_shards, "report-to": "tensorboard"}
    train(train_argv(tiny_config, tmp_path, "run", **flags, epochs=2))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in events.Images(NAME)] == [1, 2]
    assert [event.step for event in events.Scalars("val/group_score")] == [1, 2]
