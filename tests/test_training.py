"""Training end to end through OpenCLIP's own ``main`` on a tiny model."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import types
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from conftest import TINY_MODEL, checkpoint, picture, train, train_argv, write_shards
from open_clip_triplet.errors import NonFiniteLossError, UsageError
from open_clip_triplet.losses import METHODS
from open_clip_triplet.progress import Progress


def losses(logs: Path, name: str) -> list[float]:
    """Total loss of every logged step, as OpenCLIP printed it."""
    log = (logs / name / "out.log").read_text()
    return [float(value) for value in re.findall(r"(?<!Avg) Loss: ([0-9.]+)", log)]


def assert_same_weights(a: dict, b: dict, **tolerance):
    # DistributedDataParallel's names begin with "module."
    ours, theirs = ({n.removeprefix("module."): v for n, v in c["state_dict"].items()} for c in (a, b))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(
            value, theirs[name], msg=lambda m, n=name: f"{n}: {m}", **tolerance
        )


EXACT = {"rtol": 0, "atol": 0}


def assert_same_gradients(a: dict, b: dict):
    """After one step Adam's first moment is a tenth of the gradient; the weights only keep its sign."""
    for index, state in a["optimizer"]["state"].items():
        gradient, other = state["exp_avg"], b["optimizer"]["state"][index]["exp_avg"]
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-7, msg=lambda m, i=index: f"parameter {i}: {m}")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(method, paired_shards, tiny_config, tmp_path):
    train(
        train_argv(
            tiny_config, tmp_path, method, **{"loss": method, "train-data": paired_shards, "epochs": 2}
        )
    )
    seen = losses(tmp_path, method)
    assert len(seen) == 8 and seen[-1] < seen[0]
    entry = checkpoint(tmp_path, method, "epoch_2.pt")["triplet"]
    assert entry["optimizer_steps"] == 8 and entry["samples_seen"] == 128
    assert entry["images_seen"] == 128 * (1 + METHODS[method].reads_neg_images)


def test_clip_equals_stock_openclip_step_for_step(tiny_config, tmp_path, monkeypatch):
    """Ordinary shards, ``--loss clip``: the weights after 4 steps are stock OpenCLIP's, bit for bit."""
    import open_clip_train.main
    import webdataset.filters

    # webdataset seeds its sample shuffle from the clock; a stopped clock makes the two runs comparable
    monkeypatch.setattr(webdataset.filters, "time", types.SimpleNamespace(time=lambda: 0.0))
    shards = write_shards(tmp_path / "plain", [16, 16, 16, 16], paired=False)
    flags = {"train-data": shards, "dataset-type": "webdataset"}
    train(train_argv(tiny_config, tmp_path, "ours", **flags, loss="clip"))
    open_clip_train.main.main(train_argv(tiny_config, tmp_path, "stock", **flags, **{"model-config": None}))
    assert losses(tmp_path, "ours") == losses(tmp_path, "stock")
    assert len(losses(tmp_path, "ours")) == 4
    assert_same_weights(checkpoint(tmp_path, "ours"), checkpoint(tmp_path, "stock"), **EXACT)


def test_stock_openclip_reads_paired_shards_as_plain_pairs(paired_shards, tiny_config, tmp_path):
    import open_clip_train.main

    argv = train_argv(tiny_config, tmp_path, "stock", **{"train-data": paired_shards, "model-config": None})
    open_clip_train.main.main(argv)
    assert len(losses(tmp_path, "stock")) == 4


def test_accumulation_equals_one_batch(paired_shards, tiny_config, tmp_path):
    flags = {"loss": "triplet", "train-data": paired_shards}
    train(train_argv(tiny_config, tmp_path, "whole", **flags, **{"batch-size": 64}))
    train(train_argv(tiny_config, tmp_path, "parts", **flags, **{"batch-size": 32, "accum-freq": 2}))
    assert_same_gradients(checkpoint(tmp_path, "whole"), checkpoint(tmp_path, "parts"))


def torchrun(argv: list[str], processes: int) -> None:
    """``--logs=`` is OpenCLIP's flag, but torchrun of torch 2.15 takes it for its own unless ``--`` comes before."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    done = subprocess.run(
        [*command, "-m", "--", "open_clip_triplet.train", *argv],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags", [{}, {"local-loss": True, "gather-with-grad": True}], ids=["plain", "local"]
)
def test_two_processes_equal_one(flags, paired_shards, tiny_config, tmp_path):
    flags = {"loss": "triplet", "train-data": paired_shards, **flags}
    train(train_argv(tiny_config, tmp_path, "one", **{**flags, "batch-size": 64}))
    torchrun(
        train_argv(tiny_config, tmp_path, "two", **{**flags, "batch-size": 32, "dist-backend": "gloo"}), 2
    )
    assert_same_gradients(checkpoint(tmp_path, "one"), checkpoint(tmp_path, "two"))
    assert losses(tmp_path, "two")[0] == pytest.approx(losses(tmp_path, "one")[0], rel=1e-4)


@pytest.mark.slow
def test_one_run_on_one_then_four_then_two_processes(tiny_config, tmp_path):
    """12 steps in 3 epochs, each on other processes and workers, equal 12 on one process without workers."""
    flags = {
        "loss": "triplet", "train-data": write_shards(tmp_path / "shards", [29, 13, 57]), "data-streams": 8,
        "lr-scheduler": "const", "image-decoder": "fast", "total-steps": 12, "local-loss": True,
        "gather-with-grad": True, "dist-backend": "gloo", "save-most-recent": True,
    }
    train(train_argv(tiny_config, tmp_path, "whole", **{**flags, "epochs": 3}))
    for processes, workers, epochs in ((1, 2, 1), (4, 1, 2), (2, 2, 3)):
        changed = {"epochs": epochs, "workers": workers, "total-steps": 4 * epochs, "batch-size": 16 // processes}
        argv = train_argv(tiny_config, tmp_path, "parts", **{**flags, **changed})
        torchrun([*argv, "--resume", "latest"], processes)
    whole, parts = (checkpoint(tmp_path, name, "epoch_latest.pt") for name in ("whole", "parts"))
    assert whole["triplet"]["stream"] == parts["triplet"]["stream"]
    seen = [(entry[0], entry[2]["seen"]) for entry in whole["triplet"]["stream"]["counts"]]
    assert sum(number for _, number in seen) == 12 * 16 - 99 and {pass_index for pass_index, _ in seen} == {1}
    for saved in (whole, parts):  # keys' biases cancel in a softmax: their gradient is rounding, which Adam blows up
        for name, value in saved["state_dict"].items():
            if name.endswith("attn.in_proj_bias"):
                value.view(3, -1)[1] = 0
    assert_same_weights(whole, parts, rtol=1e-3, atol=2e-5)
    assert losses(tmp_path, "parts") == pytest.approx(losses(tmp_path, "whole"), rel=1e-3)


@pytest.mark.parametrize(
    "flags",
    [
        {"precision": "amp_bf16"},
        {"grad-checkpointing": True},
        {"lock-image": True},
        {"dataset-resampled": True, "train-num-samples": 64},
        {"workers": 2},
        {"report-to": "tensorboard"},
        {"grad-clip-norm": 1.0, "save-most-recent": True},
    ],
    ids=lambda flags: next(iter(flags)),
)
def test_openclips_flags_keep_working(flags, paired_shards, tiny_config, tmp_path):
    train(
        train_argv(tiny_config, tmp_path, "run", **{"loss": "triplet", "train-data": paired_shards, **flags})
    )
    assert len(losses(tmp_path, "run")) == 4


def test_locked_text_tower_stays_put(paired_shards, tmp_path):
    """``--lock-text`` as OpenCLIP wants it (CustomTextCLIP, frozen norms); the locked weights do not move."""
    import open_clip

    config = tmp_path / "tiny-custom.json"
    config.write_text(json.dumps({**TINY_MODEL, "custom_text": True}))
    open_clip.add_model_config(config)
    flags = {
        "loss": "triplet",
        "train-data": paired_shards,
        "model": "tiny-custom",
        "lock-text": True,
        "lock-text-freeze-layer-norm": True,
    }
    train(train_argv(str(config), tmp_path, "first", **flags))
    train(train_argv(str(config), tmp_path, "second", **{**flags, "epochs": 2}))
    first, second = checkpoint(tmp_path, "first"), checkpoint(tmp_path, "second", "epoch_2.pt")
    text = [name for name in first["state_dict"] if name.startswith("text.")]
    assert text and all(torch.equal(first["state_dict"][n], second["state_dict"][n]) for n in text)


def test_upsampling_factors_weigh_the_sources(paired_shards, tiny_config, tmp_path):
    flags = {
        "train-data": f"{paired_shards}::{paired_shards}",
        "train-data-upsampling-factors": "3::1",
        "dataset-resampled": True,
        "train-num-samples": 64,
    }
    train(train_argv(tiny_config, tmp_path, "run", loss="triplet", **flags))
    assert len(losses(tmp_path, "run")) == 4


def test_total_steps_is_exact(paired_shards, tiny_config, tmp_path):
    """6 steps over 4-step passes: the second epoch is short, and the schedule ends at step 6."""
    train(
        train_argv(
            tiny_config, tmp_path, "run", loss="triplet",
            **{"train-data": paired_shards, "total-steps": 6, "epochs": None},
        )
    )
    assert len(losses(tmp_path, "run")) == 6
    entry = checkpoint(tmp_path, "run", "epoch_2.pt")["triplet"]
    assert entry["optimizer_steps"] == 6 and entry["samples_seen"] == 96
    log = (tmp_path / "run" / "out.log").read_text()
    assert "6 optimizer steps: 96 samples seen, 192 images and 192 captions" in log
    assert rates(tmp_path, "run")[-1] < 0.3 * max(rates(tmp_path, "run"))


def rates(logs: Path, name: str) -> list[float]:
    return [float(rate) for rate in re.findall(r"LR: ([0-9.]+)", (logs / name / "out.log").read_text())]


def test_total_steps_in_so_many_epochs(paired_shards, tiny_config, tmp_path):
    """10 steps in 3 epochs: 3, 3 and 4, each with its checkpoint; one schedule over all of them."""
    flags = {"train-data": paired_shards, "total-steps": 10, "epochs": 3, "warmup": 0}
    train(train_argv(tiny_config, tmp_path, "run", loss="triplet", **flags))
    made = [checkpoint(tmp_path, "run", f"epoch_{n}.pt")["triplet"]["optimizer_steps"] for n in (1, 2, 3)]
    assert made == [3, 6, 10]
    expected = [1e-3 * 0.5 * (1 + math.cos(math.pi * step / 10)) for step in range(10)]
    assert rates(tmp_path, "run") == pytest.approx(expected, abs=1e-6)


def test_the_schedule_follows_the_steps_made_whatever_the_batch(paired_shards, tiny_config, tmp_path):
    """Resumed with half the batch: no step is lost, and the rate goes on falling."""
    flags = {"train-data": paired_shards, "total-steps": 12, "epochs": None, "warmup": 0}
    train(train_argv(tiny_config, tmp_path, "run", loss="triplet", **{**flags, "batch-size": 16, "total-steps": 4}))
    argv = train_argv(tiny_config, tmp_path, "run", loss="triplet", **{**flags, "batch-size": 8})
    train([*argv, "--resume", "latest"])
    expected = [1e-3 * 0.5 * (1 + math.cos(math.pi * step / 12)) for step in range(4, 12)]
    assert rates(tmp_path, "run")[4:] == pytest.approx(expected, abs=1e-6)
    assert "global batch was 16, is 8" in (tmp_path / "run" / "out.log").read_text()


def run_until(argv: list[str], wanted: Path, timeout: float = 120) -> None:
    """Start training in a process of its own and SIGKILL it as soon as ``wanted`` exists."""
    process = subprocess.Popen(
        [sys.executable, "-m", "open_clip_triplet.train", *argv],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    deadline = time.monotonic() + timeout
    while not wanted.exists():
        assert process.poll() is None, process.stderr.read()[-3000:]
        assert time.monotonic() < deadline, "no checkpoint appeared"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()


BROKEN_LOSS = """
from open_clip_triplet.losses import TripletClipLoss

class Broken(TripletClipLoss):
    def losses(self, *features):
        raise ArithmeticError("broken on purpose")
"""


def test_an_error_in_a_step_ends_the_run_and_its_workers(paired_shards, tiny_config, tmp_path):
    (tmp_path / "mine.py").write_text(BROKEN_LOSS)
    argv = train_argv(tiny_config, tmp_path, "run", loss="mine:Broken", workers=2, **{"train-data": paired_shards})
    done = subprocess.run(
        [sys.executable, "-m", "open_clip_triplet.train", *argv], cwd=tmp_path, capture_output=True, text=True,
        timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert done.returncode == 1 and "broken on purpose" in done.stderr


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_equals_undisturbed(tiny_config, tmp_path):
    shards = write_shards(tmp_path / "shards", [40, 25, 63])
    flags = {
        "loss": "triplet", "train-data": shards, "batch-size": 4, "train-num-samples": 40, "epochs": 4, "workers": 2,
    }
    train(train_argv(tiny_config, tmp_path, "whole", **flags))
    argv = train_argv(tiny_config, tmp_path, "killed", **flags)
    run_until(argv, tmp_path / "killed" / "checkpoints" / "epoch_2.pt")
    assert not (tmp_path / "killed" / "checkpoints" / "epoch_4.pt").exists(), (
        "killed too late to show anything"
    )
    train([*argv, "--resume", "latest"])
    whole, killed = (checkpoint(tmp_path, name, "epoch_4.pt") for name in ("whole", "killed"))
    assert_same_weights(whole, killed, **EXACT)
    assert whole["triplet"] == killed["triplet"]


@pytest.mark.slow
@pytest.mark.parametrize("number", ["SIGTERM", "SIGUSR1"])
def test_a_run_told_to_stop_saves_inside_the_epoch_and_goes_on(number, tiny_config, tmp_path):
    """The whole process group gets the signal, as under Slurm: workers too."""
    shards = write_shards(tmp_path / "shards", [40, 25, 63])
    flags = {"loss": "triplet", "train-data": shards, "batch-size": 4, "epochs": 3, "workers": 2, "data-streams": 4}
    train(train_argv(tiny_config, tmp_path, "whole", **flags))
    argv = train_argv(tiny_config, tmp_path, "stopped", **flags)
    process = subprocess.Popen(
        [sys.executable, "-m", "open_clip_triplet.train", *argv], start_new_session=True,
        stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    wait_for(lambda: "Train Epoch: 1 " in read(tmp_path / "stopped" / "out.log"), process)
    os.killpg(process.pid, getattr(signal, number))
    assert process.wait(timeout=120) == 0
    log = read(tmp_path / "stopped" / "out.log")
    assert f"Stopped by {number}; saved" in log and "Continue with --resume latest." in log
    saved = tmp_path / "stopped" / "checkpoints" / "epoch_1_interrupted.pt"
    assert 32 < torch.load(saved, weights_only=True)["triplet"]["optimizer_steps"] < 64
    resumed = train_argv(tiny_config, tmp_path, "stopped", **{**flags, "workers": 0})
    train([*resumed, "--resume", "latest"])
    assert not saved.exists()
    whole, stopped = (checkpoint(tmp_path, name, "epoch_3.pt") for name in ("whole", "stopped"))
    assert_same_weights(whole, stopped, **EXACT)
    assert whole["triplet"] == stopped["triplet"]
    assert len(losses(tmp_path, "stopped")) == 96


def wait_for(condition, process, timeout: float = 120) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, "ended too early"
        assert time.monotonic() < deadline, "nothing came"
        time.sleep(0.01)


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize("damage", [lambda data: data[:-5000], lambda data: b"", lambda data: b"<html>no</html>"])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(damage, paired_shards, tiny_config, tmp_path):
    flags = {"loss": "triplet", "train-data": paired_shards, "epochs": 2}
    train(train_argv(tiny_config, tmp_path, "run", **flags))
    newest = tmp_path / "run" / "checkpoints" / "epoch_2.pt"
    newest.write_bytes(damage(newest.read_bytes()))
    argv = [*train_argv(tiny_config, tmp_path, "run", **{**flags, "epochs": 3}), "--resume"]
    train([*argv, "latest"])
    log = read(tmp_path / "run" / "out.log")
    assert "epoch_2.pt is damaged" in log and "sound checkpoint before it" in log and "(epoch 1)" in log
    assert checkpoint(tmp_path, "run", "epoch_3.pt")["triplet"]["optimizer_steps"] == 12


def test_other_flags_than_the_checkpoints_are_told(paired_shards, tiny_config, tmp_path):
    flags = {"loss": "triplet", "train-data": paired_shards}
    train(train_argv(tiny_config, tmp_path, "run", **flags))
    changed = {**flags, "loss": "negclip", "epochs": 2, "seed": 4, "image-decoder": "fast"}
    train([*train_argv(tiny_config, tmp_path, "run", **changed), "--resume", "latest"])
    log = read(tmp_path / "run" / "out.log")
    assert "Other flags than the checkpoint's: --loss was triplet, is negclip." in log
    assert "another order than the checkpoint's: --seed (3 before, 4 now). The stream starts at pass 2." in log


def test_the_log_counts_images_and_their_rate_alike(paired_shards, tiny_config, tmp_path):
    train(train_argv(tiny_config, tmp_path, "run", loss="triplet", **{"train-data": paired_shards}))
    log = read(tmp_path / "run" / "out.log")
    assert "Progress lines count images, 2 for each sample" in log
    steps = re.findall(r"\[ *(\d+)/(\d+) .*?Batch \(t\): ([0-9.]+), ([0-9.]+)/s", log)
    assert [(int(count), int(total)) for count, total, *_ in steps] == [(n, 128) for n in (32, 64, 96, 128)]
    for *_, seconds, rate in steps:
        if float(seconds) > 0.05:
            assert float(rate) == pytest.approx(32 / float(seconds), rel=0.05)


def test_a_warmup_longer_than_the_run_is_warned_of(paired_shards, tiny_config, tmp_path):
    flags = {"train-data": paired_shards, "total-steps": 2, "warmup": 100}
    train(train_argv(tiny_config, tmp_path, "run", loss="triplet", **flags))
    assert "--warmup 100 is longer than the training of 2 steps" in read(tmp_path / "run" / "out.log")


def test_resume_latest_continues_after_a_finished_epoch(paired_shards, tiny_config, tmp_path):
    flags = {"loss": "triplet", "train-data": paired_shards, "lr-scheduler": "const"}
    train(train_argv(tiny_config, tmp_path, "whole", **{**flags, "epochs": 2}))
    train(train_argv(tiny_config, tmp_path, "parts", **flags))
    train([*train_argv(tiny_config, tmp_path, "parts", **{**flags, "epochs": 2}), "--resume", "latest"])
    assert_same_weights(
        checkpoint(tmp_path, "whole", "epoch_2.pt"), checkpoint(tmp_path, "parts", "epoch_2.pt"), **EXACT
    )


def test_a_loss_that_is_not_finite_is_told_with_its_step_in_the_whole_training(paired_shards, tiny_config, tmp_path):
    flags = {"loss": "triplet", "train-data": paired_shards, "lr-scheduler": "const", "warmup": 0}
    train(train_argv(tiny_config, tmp_path, "run", **flags))
    argv = train_argv(tiny_config, tmp_path, "run", **{**flags, "epochs": 2, "lr": 1e30})
    with pytest.raises(NonFiniteLossError, match="at step [567] "):  # an epoch is 4 steps
        train([*argv, "--resume", "latest"])


@pytest.mark.parametrize(("batch", "rest"), [(32, 50), (64, 25), (16, 100)])
def test_the_rest_of_an_epoch_is_counted_in_samples(batch, rest):
    """Stopped after 1,600 of 3,200 samples at batch 32."""
    args = Namespace(total_steps=None, epochs=2, epochs_given=True, accum_freq=1, batch_size=batch, world_size=1)
    run = Progress()
    state = {"optimizer_steps": 50, "into_epoch": 50, "flags": {"global batch": "32"}}
    run.resume_from({"epoch": 0, "triplet": state})
    run.plan(args, 3200 // batch)
    assert run.start_epoch_steps(args, 0) == rest


@pytest.mark.parametrize("epochs", [1, 3])  # 12 and 4 steps each, of data for 3
def test_total_steps_are_made_of_stock_data_too(epochs, tiny_config, tmp_path):
    flags = {"dataset-type": "synthetic", "train-num-samples": 24, "batch-size": 8, "workers": 0, "total-steps": 12}
    train(train_argv(tiny_config, tmp_path, "run", **{**flags, "epochs": epochs}))
    assert checkpoint(tmp_path, "run", f"epoch_{epochs}.pt")["triplet"]["optimizer_steps"] == 12


def test_a_teacher_with_the_sigmoid_loss(paired_shards, tiny_config, tmp_path):
    flags = {"loss": "triplet", "train-data": paired_shards, "siglip": True, "teacher": "frozen"}
    train(train_argv(tiny_config, tmp_path, "run", **flags))
    assert checkpoint(tmp_path, "run")["triplet"]["optimizer_steps"] == 4


def test_more_total_steps_go_on_with_the_stream(tiny_config, tmp_path):
    """6 of 12 steps, then the rest: the same weights as 12 at once, and as many samples seen."""
    shards = write_shards(tmp_path / "shards", [16, 16, 16, 16])
    flags = {"loss": "triplet", "train-data": shards, "lr-scheduler": "const", "epochs": None}
    train(train_argv(tiny_config, tmp_path, "whole", **flags, **{"total-steps": 12}))
    train(train_argv(tiny_config, tmp_path, "parts", **flags, **{"total-steps": 6}))
    train([*train_argv(tiny_config, tmp_path, "parts", **flags, **{"total-steps": 12}), "--resume", "latest"])
    whole, parts = checkpoint(tmp_path, "whole", "epoch_3.pt"), checkpoint(tmp_path, "parts", "epoch_4.pt")
    assert_same_weights(whole, parts, **EXACT)
    assert parts["triplet"]["optimizer_steps"] == whole["triplet"]["optimizer_steps"] == 12
    assert len(losses(tmp_path, "parts")) == 12


def test_a_checkpoint_of_version_0_1_inside_an_epoch_goes_on_from_its_start(paired_shards, tiny_config, tmp_path):
    flags = {"loss": "triplet", "train-data": paired_shards, "lr-scheduler": "const"}
    train(train_argv(tiny_config, tmp_path, "run", **flags))
    path = tmp_path / "run" / "checkpoints" / "epoch_1.pt"
    old = torch.load(path, weights_only=True)
    old["triplet"] = {"loss": "triplet", "epoch": 1, "batch": 2, "optimizer_steps": 6, "samples_seen": 96}
    torch.save(old, path)
    train([*train_argv(tiny_config, tmp_path, "run", **{**flags, "epochs": 2}), "--resume", "latest"])
    assert "version 0.1 and is mid-epoch" in read(tmp_path / "run" / "out.log")
    assert checkpoint(tmp_path, "run", "epoch_2.pt")["triplet"]["optimizer_steps"] == 10


def test_total_steps_is_exact_on_csv_too(tiny_config, tmp_path):
    lines = ["filepath\ttitle"]
    for index in range(32):
        (tmp_path / f"{index}.jpg").write_bytes(picture(index))
        lines.append(f"{tmp_path}/{index}.jpg\tnumber {index}")
    (tmp_path / "train.csv").write_text("\n".join(lines))
    flags = {"train-data": tmp_path / "train.csv", "total-steps": 5, "epochs": None}
    train(train_argv(tiny_config, tmp_path, "run", **flags))
    assert len(losses(tmp_path, "run")) == 5
    assert checkpoint(tmp_path, "run", "epoch_3.pt")["triplet"]["optimizer_steps"] == 5


def test_random_layers_continue_alike_between_epochs(paired_shards, tmp_path):
    """Patch dropout draws from torch's generator; a resume after an epoch draws the same."""
    import open_clip

    vision = {**TINY_MODEL["vision_cfg"], "patch_dropout": 0.5, "patch_size": 8}
    config = tmp_path / "tiny-dropout.json"
    config.write_text(json.dumps({**TINY_MODEL, "vision_cfg": vision}))
    open_clip.add_model_config(config)
    flags = {"loss": "triplet", "train-data": paired_shards, "model": "tiny-dropout", "lr-scheduler": "const"}
    train(train_argv(str(config), tmp_path, "whole", **{**flags, "epochs": 2}))
    train(train_argv(str(config), tmp_path, "parts", **flags))
    train([*train_argv(str(config), tmp_path, "parts", **{**flags, "epochs": 2}), "--resume", "latest"])
    whole, parts = (checkpoint(tmp_path, name, "epoch_2.pt") for name in ("whole", "parts"))
    assert_same_weights(whole, parts, **EXACT)


@pytest.mark.parametrize("flags", [{}, {"save-most-recent": True, "delete-previous-checkpoint": True}])
def test_a_full_disk_keeps_the_last_good_checkpoint_and_training_goes_on(flags, paired_shards, tiny_config, tmp_path):
    """A real limit on file size, under which torch's writer fails as on a full disk, from the second epoch on."""
    import resource

    from open_clip_triplet import saving

    limits, saved = resource.getrlimit(resource.RLIMIT_FSIZE), []
    durably = saving.save_durably

    def filling(state, path):
        saved.append(path)
        if len(saved) > 1 + ("save-most-recent" in flags):
            resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
        durably(state, path)

    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(saving, "save_durably", filling)
            train(train_argv(tiny_config, tmp_path, "run", loss="triplet",
                             **{"train-data": paired_shards, "epochs": 3, **flags}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    log = read(tmp_path / "run" / "out.log")
    assert "disk full" in log and "the last good checkpoint is kept" in log and "After epoch 2" in log
    kept = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert kept == {"epoch_1.pt"} | ({"epoch_latest.pt"} if flags else set())
    for name in kept:
        assert checkpoint(tmp_path, "run", name)["triplet"]["optimizer_steps"] == 4


@pytest.mark.parametrize("precision", ["pure_bf16", "amp_bf16"])
def test_validation_in_low_precision(precision, paired_shards, tiny_config, tmp_path):
    flags = {"train-data": paired_shards, "val-data": paired_shards, "precision": precision}
    train(train_argv(tiny_config, tmp_path, "run", loss="triplet", **flags))
    results = json.loads((tmp_path / "run" / "checkpoints" / "results.jsonl").read_text())
    assert results["paired_samples"] == 64


def test_validation_logs_compositional_scores(paired_shards, tiny_config, tmp_path):
    flags = {"train-data": paired_shards, "val-data": paired_shards, "report-to": "tensorboard"}
    train(train_argv(tiny_config, tmp_path, "run", loss="triplet", **flags))
    results = json.loads((tmp_path / "run" / "checkpoints" / "results.jsonl").read_text())
    assert results["paired_samples"] == 64 and results["num_samples"] == 64
    assert 0 <= results["group_score"] <= min(results["text_score"], results["image_score"]) <= 1
    assert "image_to_text_R@1" in results and "clip_val_loss" in results
    assert "group_score:" in (tmp_path / "run" / "out.log").read_text()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert events.Scalars("val/group_score")[0].value == pytest.approx(results["group_score"])


def test_compositional_scores_reach_wandb(paired_shards, tiny_config, tmp_path, monkeypatch):
    """A real wandb run, offline; what it is given to log is noted on the way."""
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    logged = {}
    log = wandb.Run.log
    monkeypatch.setattr(wandb.Run, "log", lambda run, data, **more: (logged.update(data), log(run, data, **more)))
    flags = {"train-data": paired_shards, "val-data": paired_shards, "report-to": "wandb"}
    train(train_argv(tiny_config, tmp_path, "run", loss="triplet", **flags))
    assert {"val/group_score", "val/image_to_text_R@1", "train/loss"} <= set(logged)


def test_ordinary_validation_data_stays_stock(paired_shards, tiny_config, tmp_path):
    plain = write_shards(tmp_path / "plain", [16], paired=False)
    train(
        train_argv(
            tiny_config, tmp_path, "run", loss="triplet", **{"train-data": paired_shards, "val-data": plain}
        )
    )
    results = json.loads((tmp_path / "run" / "checkpoints" / "results.jsonl").read_text())
    assert "group_score" not in results and results["num_samples"] == 16


def test_plain_shards_under_a_paired_loss_name_shard_and_members(tiny_config, tmp_path):
    from open_clip_triplet.errors import ShardError

    plain = write_shards(tmp_path / "plain", [16, 16], paired=False)
    with pytest.raises(ShardError, match=r"triplet reads neg\.jpg and neg\.txt.*00000\.tar.*jpg, json, txt"):
        train(train_argv(tiny_config, tmp_path, "run", loss="triplet", **{"train-data": plain}))


def test_weight_decay_reaches_every_parameter_on_request(paired_shards, tiny_config, tmp_path):
    flags = {"loss": "triplet", "train-data": paired_shards, "wd": 0.5}
    train(train_argv(tiny_config, tmp_path, "some", **flags))
    train(train_argv(tiny_config, tmp_path, "all", **flags, **{"decay-all": True}))
    some, every = checkpoint(tmp_path, "some"), checkpoint(tmp_path, "all")
    assert [group["weight_decay"] for group in some["optimizer"]["param_groups"]] == [0.0, 0.5]
    assert [group["weight_decay"] for group in every["optimizer"]["param_groups"]] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("data", "says"), [("a.csv", "--loss triplet trains on"), ("a.tar", "none of the 1 shards looked at can be read")]
)
def test_an_error_is_the_last_line_and_status_2(data, says, tiny_config, tmp_path):
    argv = train_argv(tiny_config, tmp_path, "run", loss="triplet", **{"train-data": data})
    done = subprocess.run([sys.executable, "-m", "open_clip_triplet.train", *argv], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(f"error: {says}")


def test_benchmarks_run_at_validations_without_any_validation_data(paired_shards, tiny_config, tmp_path, real_data):
    """SugarCrepe's real annotations and the COCO images that are there, after each of two epochs."""
    root = tmp_path / "benchmarks"
    root.mkdir()
    (root / "sugar-crepe").symlink_to(real_data / "sugar-crepe")
    (root / "coco").symlink_to(real_data / "coco")
    flags = {"train-data": paired_shards, "eval-benchmarks": "sugarcrepe", "eval-data-root": root, "epochs": 2}
    train(train_argv(tiny_config, tmp_path, "run", loss="triplet", **flags, **{"eval-allow-partial": True}))
    lines = (tmp_path / "run" / "checkpoints" / "results.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert any(name.startswith("sugarcrepe-partial/") for name in json.loads(lines[-1]))


def test_missing_benchmark_data_is_told_before_training(paired_shards, tiny_config, tmp_path):
    flags = {"train-data": paired_shards, "eval-benchmarks": "sugarcrepe", "eval-data-root": tmp_path}
    with pytest.raises(UsageError, match="sugarcrepe"):
        train(train_argv(tiny_config, tmp_path, "run", loss="triplet", **flags))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_torchcompile(paired_shards, tiny_config, tmp_path):
    """The compiled model trains, and its checkpoint has the names of the uncompiled one."""
    flags = {"train-data": paired_shards, "torchcompile": True, "epochs": 1}
    train(train_argv(tiny_config, tmp_path, "run", loss="triplet", **flags))
    assert not [name for name in checkpoint(tmp_path, "run")["state_dict"] if "_orig_mod" in name]
    assert len(losses(tmp_path, "run")) == 4
