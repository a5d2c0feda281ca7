"""The table of methods, the flags, what is refused, and the guard against non-finite losses."""

from __future__ import annotations

import argparse

import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss, SigLipLoss

from open_clip_triplet import losses
from open_clip_triplet.errors import NonFiniteLossError
from open_clip_triplet.losses import METHODS, add_loss_arguments, create_loss
from open_clip_triplet.losses.guard import FiniteGuard


def parsed(*flags, **stock):
    """Arguments as the trainer hands them over: OpenCLIP's, its own two, and the losses' flags."""
    parser = argparse.ArgumentParser()
    add_loss_arguments(parser)
    args = parser.parse_args(flags)
    for name, value in {
        "loss": "triplet",
        "neg_captions": 1,
        "model": "RN50",
        "distill": False,
        "siglip": False,
        "local_loss": False,
        "gather_with_grad": False,
        "rank": 0,
        "world_size": 1,
        "horovod": False,
        "accum_freq": 1,
        "loss_dist_impl": None,
        **stock,
    }.items():
        setattr(args, name, value)
    return args


def test_the_flags_are_these():
    parser = argparse.ArgumentParser()
    add_loss_arguments(parser)
    flags = {option for action in parser._actions for option in action.option_strings}
    assert flags - {"-h", "--help"} == {
        "--loss-chunk-size",
        "--neg-weight",
        "--neg-scope",
        "--neg-images-in-text-denominator",
        "--cyclip-in-modal",
        "--cyclip-cross-modal",
        "--margin",
        "--margin-weight",
        "--hard-negative-weight",
        "--focal-gamma",
        "--label-smoothing",
        "--paraphrase-weight",
        "--units",
        "--unit-weight",
        "--plain-every",
        "--teacher",
        "--teacher-decay",
        "--distill-weight",
    }


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("clip", ("image", "text")),
        ("clip-hn", ("image", "text", "neg_image", "neg_text")),
        ("negclip", ("image", "text", "neg_text")),
        ("negimage", ("image", "text", "neg_image")),
        ("triplet", ("image", "text", "neg_image", "neg_text")),
        ("cyclip", ("image", "text")),
        ("cyclip-triplet", ("image", "text", "neg_image", "neg_text")),
    ],
)
def test_members_of_a_sample_that_a_method_reads(name, fields):
    assert METHODS[name].fields == fields


def test_every_method_builds_its_loss():
    for name, method in METHODS.items():
        assert type(create_loss(parsed(loss=name))) is method.loss
    assert type(create_loss(parsed(loss="clip", siglip=True))) is SigLipLoss
    assert type(create_loss(argparse.Namespace(loss="triplet"))) is losses.TripletClipLoss


def test_options_reach_the_loss():
    flags = "--loss-chunk-size 64 --neg-weight 0.5 --neg-images-in-text-denominator --cyclip-in-modal 0.1"
    loss = create_loss(
        parsed(*flags.split(), loss="cyclip-triplet", neg_captions=3, accum_freq=4, world_size=2)
    )
    assert isinstance(loss, ClipLoss)
    options = loss.options
    assert (loss.chunk_size, options.neg_weight, options.neg_images_in_text_denominator) == (64, 0.5, True)
    assert (options.cyclip_in_modal, options.cyclip_cross_modal, loss.text_group) == (0.1, 0.25, 4)
    assert (loss.accum_freq, loss.world_size) == (4, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "tripplet"}, "unknown loss 'tripplet'.*triplet"),
        ({"local_loss": True}, "--local-loss without --gather-with-grad drops the gradient"),
        ({"horovod": True}, "torchrun"),
        ({"loss": "cyclip", "siglip": True}, "--siglip with --loss cyclip is not defined"),
        ({"loss": "clip-hn", "neg_captions": 2}, "reads one negative caption; --neg-captions 2"),
        ({"loss": "negimage", "neg_captions": 2}, "reads no negative captions; --neg-captions 2"),
        ({"loss": "negclip", "neg_weight": 0.5}, "--neg-weight means nothing to --loss negclip"),
        ({"loss": "clip", "cyclip_in_modal": 1.0}, "--cyclip-in-modal means nothing to --loss clip"),
        ({"loss": "clip", "loss_chunk_size": 8}, "--loss clip is OpenCLIP's own"),
        ({"loss": "torch.nn:Identity", "loss_chunk_size": 8}, "--loss torch.nn:Identity is the user's own"),
        ({"teacher": "frozen", "teacher_decay": 0.9}, "--teacher-decay is for --teacher ema"),
        ({"siglip": True, "neg_images_in_text_denominator": True}, "has no denominators"),
        ({"siglip": True, "neg_scope": "own"}, "drop --neg-scope own"),
        ({"neg_scope": "own", "neg_images_in_text_denominator": True}, "is for --neg-scope batch"),
        ({"loss": "clip-hn", "neg_scope": "own"}, "--neg-scope means nothing to --loss clip-hn"),
        ({"model": "coca_ViT-B-32"}, "CoCa has a loss of its own"),
        ({"loss": "clip", "margin": "fixed"}, "--margin means nothing to --loss clip, only to clip-hn, negclip"),
        ({"margin_weight": 0.1}, "--margin-weight means nothing without --margin"),
        ({"focal_gamma": 1.0}, "--focal-gamma means nothing without --hard-negative-weight"),
        ({"teacher": "ema", "accum_freq": 2}, "--teacher needs --accum-freq 1"),
        ({"teacher": "ema", "distill_model": "RN50"}, "are two teachers"),
        ({"teacher": "ema", "precision": "pure_bf16"}, "does not move in weights of --precision pure_bf16"),
        ({"distill_weight": 2.0}, "nothing without --teacher or --distill-model"),
        ({"loss": "nowhere.at_all:Loss"}, "cannot import nowhere.at_all:Loss .No module named 'nowhere'"),
        ({"loss": "open_clip.loss:dist"}, "open_clip.loss:dist is not a class"),
    ],
)
def test_unsupported_combinations_say_what_to_do(options, message):
    with pytest.raises(ValueError, match=message):
        create_loss(parsed(**options))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--neg-weight", "0"), "must be above 0"), (("--loss-chunk-size", "-1"), "must be above 0"),
        (("--units", "-1"), "must be above 0"), (("--plain-every", "1"), "must be above 1"),
        (("--teacher-decay", "1.5"), "must be from 0 to 1"), (("--label-smoothing", "2"), "must be from 0 to 1"),
        (("--focal-gamma", "-1"), "must be 0 or above"), (("--neg-weight", "inf"), "must be above 0"),
        (("--cyclip-in-modal", "nan"), "must be 0 or above"),
    ],
)
def test_numbers_have_ranges(flags, message, capsys):
    with pytest.raises(SystemExit):
        parsed(*flags)
    assert message in capsys.readouterr().err


def test_a_nan_stops_training_and_names_its_surroundings():
    rows = F.normalize(torch.randn(6, 4), dim=1)
    loss = losses.TripletClipLoss(accum_freq=2)
    for _ in range(4):
        loss(rows, rows, torch.tensor(50.0))
    broken = rows.clone()
    broken[3, 1] = float("nan")
    with pytest.raises(NonFiniteLossError, match=r"nan at step 2 .*logit_scale 50; .*images 1, texts nan"):
        loss(rows, broken, torch.tensor(50.0))


def test_an_infinite_scale_stops_training():
    rows = F.normalize(torch.randn(6, 4), dim=1)
    with pytest.raises(NonFiniteLossError, match="logit_scale inf"):
        losses.ClipHnLoss()(rows, rows, torch.tensor(float("inf")))


def test_facts_that_have_not_arrived_wait_without_blocking():
    """What an accelerator does: numbers land later, and are judged then or on demand."""

    class Event:
        ready = False

        def query(self):
            return self.ready

        def synchronize(self):
            self.ready = True

    guard, event = FiniteGuard(), Event()
    guard._pending.append((8, torch.tensor([float("nan"), 1.0, 1.0, 1.0]), event))
    good = torch.ones(1, 2)
    guard.watch(9, torch.tensor(1.0), torch.tensor(1.0), good, good)
    with pytest.raises(NonFiniteLossError, match="at step 8"):
        guard.check()
