#!/usr/bin/env python
"""Training curves under ``--image-decoder pil`` and ``fast``, against the spread between seeds.

    python tools/compare_decoders.py --train-data 'flickr8k/train-{00000..00011}.tar' --out curves.json

Trains a tiny CLIP for every decoder and seed in this process, and compares the mean loss of the last
quarter of the steps: the difference between decoders at the same seed, and between seeds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import statistics
import sys
import tempfile
from pathlib import Path

import torch

from open_clip_triplet import hooks
from open_clip_triplet.files import write_text_durably

MODEL = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--train-data", required=True)
    parser.add_argument("--steps", type=int, default=200, help="default %(default)s")
    parser.add_argument("--batch-size", type=int, default=32, help="default %(default)s")
    parser.add_argument("--seeds", type=int, default=2, help="default %(default)s")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    curves: dict[str, list[list[float]]] = {"pil": [], "fast": []}
    with tempfile.TemporaryDirectory() as folder:
        for seed, decoder in itertools.product(range(options.seeds), curves):
            curves[decoder].append(train(Path(folder), decoder, seed, options))
            print(f"seed {seed}, {decoder}: last quarter {last(curves[decoder][-1]):.4f}", flush=True)
    ends = {name: [last(curve) for curve in runs] for name, runs in curves.items()}
    between_decoders = [abs(a - b) for a, b in zip(*ends.values())]
    between_seeds = [abs(a - b) for runs in ends.values() for a, b in itertools.combinations(runs, 2)]
    print(f"difference of pil and fast at the same seed: {statistics.mean(between_decoders):.4f}")
    print(f"difference of seeds under the same decoder:  {statistics.mean(between_seeds):.4f}")
    found = {"steps": options.steps, "batch size": options.batch_size, "last quarter": ends, "losses": curves}
    write_text_durably(options.out, json.dumps(found, indent=1) + "\n")
    return 0


def train(folder: Path, decoder: str, seed: int, options) -> list[float]:
    """Losses by step."""
    from open_clip_train.main import main as open_clip_main

    config = folder / "decoders-tiny.json"
    config.write_text(json.dumps(MODEL))
    name = f"{decoder}-{seed}"
    flags = {
        "loss": "clip", "image-decoder": decoder, "train-data": options.train_data, "model": config.stem,
        "model-config": config, "logs": folder, "name": name, "seed": seed, "device": "cpu", "workers": 0,
        "batch-size": options.batch_size, "total-steps": options.steps, "lr": 1e-3, "warmup": 20,
        "log-every-n-steps": 1,
    }  # fmt: skip
    with hooks.installed():
        open_clip_main([str(part) for flag, value in flags.items() for part in (f"--{flag}", value)])
    log = (folder / name / "out.log").read_text()
    return [float(value) for value in re.findall(r"[Cc]ontrastive_loss: ([\d.]+)", log)]


def last(curve: list[float]) -> float:
    return statistics.mean(curve[-len(curve) // 4 :])


if __name__ == "__main__":
    sys.exit(main())
