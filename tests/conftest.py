"""Shared fixtures: a tiny OpenCLIP model, small paired shards, and training in this process."""

from __future__ import annotations

import io
import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from open_clip_triplet.shards import ShardWriter, write_sizes

TINY_MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "yellow": (230, 210, 40)}


def picture(seed: int, colour=(128, 128, 128), size=(48, 40)) -> bytes:
    """A JPEG of one colour with noise; the same seed gives the same bytes."""
    noise = np.random.default_rng(seed).normal(0, 12, (size[1], size[0], 3))
    image = Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def paired_sample(index: int) -> dict:
    """One paired sample: a coloured square and the square of the next colour as its negative."""
    names = list(COLOURS)
    name, other = names[index % 4], names[(index + 1) % 4]
    return {
        "__key__": f"{index:08d}",
        "jpg": picture(index, COLOURS[name]), "txt": f"a {name} square number {index}",
        "neg.jpg": picture(10_000 + index, COLOURS[other]), "neg.txt": f"a {other} square number {index}",
        "json": {
            "captions": [f"a {name} square number {index}", f"number {index}, {name}"],
            "neg_captions": [f"a {other} square number {index}", f"number {index}, {other}"],
        },
    }


def write_shards(folder: Path, counts: list[int], *, paired: bool = True) -> str:
    """Shards of these sample counts with ``sizes.json``; returns their brace spec."""
    index, sizes = 0, {}
    for number, count in enumerate(counts):
        with ShardWriter(folder / f"{number:05d}.tar") as writer:
            for _ in range(count):
                sample = paired_sample(index)
                if not paired:
                    sample = {k: v for k, v in sample.items() if not k.startswith("neg.")}
                writer.write(sample)
                index += 1
        sizes[f"{number:05d}.tar"] = count
    write_sizes(folder, sizes)
    return f"{folder}/{{00000..{len(counts) - 1:05d}}}.tar"


@pytest.fixture(scope="session")
def paired_shards(tmp_path_factory) -> str:
    """Four paired shards of 16 samples."""
    return write_shards(tmp_path_factory.mktemp("paired"), [16, 16, 16, 16])


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory) -> str:
    """Path of a model config named ``tiny-test``, registered with OpenCLIP in this process."""
    import open_clip

    path = tmp_path_factory.mktemp("config") / "tiny-test.json"
    path.write_text(json.dumps(TINY_MODEL))
    open_clip.add_model_config(path)
    return str(path)


def train_argv(tiny_config: str, logs: Path, name: str, **flags) -> list[str]:
    """Command line for a short run on the tiny model; a flag given as None is left out, True is bare."""
    defaults = {
        "model": "tiny-test", "model-config": tiny_config, "device": "cpu", "logs": str(logs), "name": name,
        "workers": 0, "batch-size": 16, "epochs": 1, "lr": 1e-3, "warmup": 1, "seed": 3,
        "precision": "fp32", "log-every-n-steps": 1,
    }
    argv = []
    for flag, value in {**defaults, **flags}.items():
        if value is True:
            argv.append(f"--{flag}")
        elif value is not None:
            argv += [f"--{flag}", str(value)]
    return argv


def train(argv: list[str]) -> None:
    """OpenCLIP's ``main`` with our hooks, in this process; log handlers are put back afterwards."""
    from open_clip_train.main import main

    from open_clip_triplet import hooks

    handlers = list(logging.root.handlers)
    try:
        with hooks.installed():
            assert main(argv) in (None, 0)
    finally:
        for handler in set(logging.root.handlers) - set(handlers):
            logging.root.removeHandler(handler)
            handler.close()


def checkpoint(logs: Path, name: str, file: str = "epoch_1.pt") -> dict:
    import torch

    return torch.load(logs / name / "checkpoints" / file, weights_only=True)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The optional folder of real images; the test is skipped where it is not given."""
    folder = os.environ.get("TRIPLET_TEST_DATA")
    if not folder:
        pytest.skip("TRIPLET_TEST_DATA is not set: no real images to run on")
    return Path(folder)
