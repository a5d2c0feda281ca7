"""Train and score methods on an embedded world; what the demo and the reproduction share.

A run trains one method with ``python -m open_clip_triplet.train``, scores the checkpoint on the
held-out scenes and leaves ``OUTPUT/results/NAME.json``. A run whose result is there is not repeated.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import world_results
from open_clip_triplet.evaluation.metrics import composition_correct, pair_similarities, wilson_interval
from open_clip_triplet.files import write_text_durably
from open_clip_triplet.shards import read_meta, read_samples, read_sizes, rename_members

MODEL = "shapes-tiny"
#: relative to here, so that the commands printed and recorded hold for any checkout
MODEL_CONFIG = os.path.relpath(Path(__file__).parent.parent / "examples" / "configs" / f"{MODEL}.json")
SCORES = ("text", "image", "group")
_FLAGS = (
    "--lr", "2e-3", "--wd", "0.1", "--warmup", "50", "--beta2", "0.98", "--eps", "1e-6",
    "--workers", "1", "--precision", "fp32", "--aug-cfg", "scale=(1.0, 1.0)", "--image-decoder", "pil",
)
#: What all runs on a world share. No crops: where a thing is belongs to its caption. The second moment of 0.999,
#: OpenCLIP's default for models not called ViT, is slow to settle in so few steps. With a decoder named,
#: clip too reads its samples through the paired pipeline, so that every method sees the same ones in the same order.
COMMON = {"glyphs": ("--batch-size", "64", *_FLAGS), "single": ("--batch-size", "128", *_FLAGS)}
_PROGRESS = re.compile(r"Train Epoch: (\d+) \[\s*(\d+)/(\d+).*?\bLoss: ([\d.]+)")


@dataclass(frozen=True)
class Run:
    """One training: ``label`` is the method's name in tables, ``flags`` what it adds to the command.

    shards: folder of the training shards, in the output folder.
    """

    label: str
    seed: int
    steps: int
    flags: tuple[str, ...]
    shards: str = "shards/train"

    @property
    def name(self) -> str:
        # NegCLIP and NegCLIP++ are two methods
        words = re.sub(r"[^a-z0-9]+", "-", self.label.lower().replace("+", "-plus-")).strip("-")
        return f"{words}-{self.steps}-steps-seed-{self.seed}"


def command(run: Run, shards: str, logs: Path, common: tuple[str, ...]) -> list[str]:
    """The training command. Everything that a method does not add is the same for all."""
    return [
        sys.executable, "-m", "open_clip_triplet.train", *run.flags,
        "--model", MODEL, "--model-config", MODEL_CONFIG, "--train-data", shards,
        "--total-steps", str(run.steps), "--seed", str(run.seed), *common,
        "--logs", str(logs), "--name", run.name, "--save-frequency", "0", "--log-every-n-steps", "10",
    ]


def execute(run: Run, output: Path, common: tuple[str, ...], *, keep_checkpoint: bool = True) -> dict:
    """Train and score one run, or read its result where it is there for the same command.

    Args:
        run: what to train.
        output: holds ``shards/`` (train and val), and gets ``runs/`` and ``results/``.
        common: flags shared by all runs.

    Raises:
        SystemExit: training failed; the end of its log is printed.
    """
    record = output / "results" / f"{run.name}.json"
    shards = sorted((output / run.shards).glob("*.tar"))
    spec = f"{shards[0].parent}/<{shards[0].stem}..{shards[-1].stem}>.tar"
    argv = command(run, spec, output / "runs", common)
    result = result_of(run, output)
    if result and result["command"] == argv[1:]:
        print(f"{run.name}: done before", flush=True)
        return result
    started, used = time.time(), _childrens_seconds()
    samples = sum(read_sizes([str(shard) for shard in shards]) or [])
    batch = int(argv[argv.index("--batch-size") + 1])
    checkpoint = _train(run, argv, output, steps_per_epoch=samples // batch)
    seconds = time.time() - started
    position = _position(checkpoint)
    if position.get("optimizer_steps", run.steps) != run.steps:  # a signal ends training with status 0
        steps = position["optimizer_steps"]
        raise SystemExit(f"{run.name}: stopped after {steps} steps; the same command trains it anew")
    result = {
        "label": run.label, "seed": run.seed, "steps": run.steps, "command": argv[1:],
        "training_seconds": round(seconds, 1), "processor_seconds": round(_childrens_seconds() - used, 1), **position,
        **score(checkpoint, output / "shards" / "val" / "00000.tar"), **world_results.environment(),
    }
    if not keep_checkpoint:
        checkpoint.unlink()
    write_text_durably(record, json.dumps(result, indent=1) + "\n")
    return result


def result_of(run: Run, output: Path) -> dict | None:
    """What :func:`execute` has written for a run, or None."""
    path = output / "results" / f"{run.name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def last_checkpoint(run: Run, output: Path) -> Path | None:
    """The newest checkpoint that a run has left, or None."""
    checkpoints = (output / "runs" / run.name / "checkpoints").glob("epoch_*.pt")
    return max(checkpoints, key=lambda path: path.stat().st_mtime, default=None)


def _train(run: Run, argv: list[str], output: Path, steps_per_epoch: int) -> Path:
    """Run the command with a progress bar; all it prints goes to ``NAME.log``. Returns the checkpoint."""
    from tqdm import tqdm

    folder = output / "runs" / run.name
    if folder.exists():  # an earlier try that was cut short; OpenCLIP refuses to write over it
        folder.rename(folder.with_name(f"{folder.name}.abandoned-{time.time_ns()}"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.parent / f"{run.name}.log"
    print(f"$ {shlex.join(['python', *argv[1:]])}", flush=True)
    tail: deque = deque(maxlen=25)
    interval = 0.5 if sys.stderr.isatty() else 15  # seconds: a log file wants fewer lines than a screen
    with (
        open(log, "w", encoding="utf-8") as file,
        subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process,
        tqdm(total=run.steps, desc=run.label, unit="step", mininterval=interval) as bar,
    ):
        for line in process.stdout:
            file.write(line)
            tail.append(line)
            if found := _PROGRESS.search(line):
                epoch, done, total, loss = found.groups()  # done and total count image rows
                bar.set_postfix(loss=loss, refresh=False)
                step = round((int(epoch) + int(done) / int(total)) * steps_per_epoch)
                bar.update(max(0, min(step, run.steps) - bar.n))
        if process.wait() == 0:
            bar.update(run.steps - bar.n)
    if process.returncode:
        raise SystemExit(f"{''.join(tail)}\ntraining {run.label} failed; all of its output: {log}")
    return last_checkpoint(run, output)


def _childrens_seconds() -> float:
    """Processor time of the child processes that have ended, their workers' too."""
    times = os.times()
    return times.children_user + times.children_system


def _position(checkpoint: Path) -> dict:
    """What training saw, from the plugin's entry in the checkpoint."""
    import torch

    entry = torch.load(checkpoint, map_location="cpu", weights_only=True).get("triplet", {})
    names = ("optimizer_steps", "samples_seen", "images_seen", "captions_seen")
    return {name: entry[name] for name in names if name in entry}


# --- scoring --------------------------------------------------------------------------------------


def score(checkpoint: Path, val: Path) -> dict:
    """Scores on held-out scenes.

    Returns:
        ``text``, ``image``, ``group``: Winoground's scores, 0..1; ``items``: how many samples;
        ``group_correct``: a string of 0 and 1, one per item; ``categories``: {category: [right,
        items]}, the caption preferred to its hard negative for the positive image (SugarCrepe);
        ``category_correct``: {category: string of 0 and 1}, the group score of its items, in their order;
        ``r1``, ``r5``: mean of image-to-text and text-to-image recall among all the positives.
    """
    import open_clip

    from open_clip_triplet.evaluation.encode import Encoder, evaluating
    from open_clip_triplet.evaluation.images import open_image

    open_clip.add_model_config(MODEL_CONFIG)
    model, _, preprocess = open_clip.create_model_and_transforms(MODEL, pretrained=str(checkpoint))
    encoder = Encoder(model, preprocess, open_clip.get_tokenizer(MODEL))
    samples = [rename_members(sample) for sample in read_samples(val)]
    with evaluating(model):
        x0, x1 = (
            _in_batches(encoder.images, [preprocess(open_image(sample[role])[0]) for sample in samples])
            for role in ("image", "neg_image")
        )
        y0, y1 = (
            _in_batches(encoder.texts, [sample[role].decode() for sample in samples])
            for role in ("text", "neg_text")
        )
    s00, s01, s10, s11, _, _ = pair_similarities(x0, x1, y0, y1).T
    correct = composition_correct(s00, s01, s10, s11)
    categories: dict[str, list[int]] = {}
    by_category: dict[str, str] = {}
    for sample, right, group in zip(samples, s00 > s01, correct["group"], strict=True):
        category = read_meta(sample)["category"]
        counts = categories.setdefault(category, [0, 0])
        counts[0] += int(right)
        counts[1] += 1
        by_category[category] = by_category.get(category, "") + "01"[int(group)]
    return {
        **{name: float(correct[name].mean()) for name in SCORES},
        "items": len(samples),
        "group_correct": "".join("1" if right else "0" for right in correct["group"]),
        "categories": dict(sorted(categories.items())),
        "category_correct": dict(sorted(by_category.items())),
        **{f"r{k}": (recall_at(x0 @ y0.T, k) + recall_at(y0 @ x0.T, k)) / 2 for k in (1, 5)},
    }


def recall_at(similarity: np.ndarray, k: int) -> float:
    """Share of rows whose own column is among their k largest; [n, n], a tie counts as above it."""
    own = np.diagonal(similarity)[:, None]
    return float(((similarity >= own).sum(axis=1) <= k).mean())


def _in_batches(encode, items: list, size: int = 250) -> np.ndarray:
    return np.concatenate([encode(items[start : start + size]) for start in range(0, len(items), size)])


def difference(a: dict, b: dict, kind: str | None = None) -> tuple[float, float, float]:
    """Lead of a over b in group score, of one kind of hard negative or of all, with its 95% interval.

    Returns (lead, low, high).

    Both were scored on the same items, so the interval is that of the mean of the items'
    differences (-1, 0 or 1), by the normal approximation.
    """
    strings = [r["category_correct"][kind] if kind else r["group_correct"] for r in (a, b)]
    x, y = (np.array([int(right) for right in string]) for string in strings)
    d = x - y
    half = 1.959963984540054 * d.std(ddof=1) / math.sqrt(len(d))
    return float(d.mean()), float(d.mean() - half), float(d.mean() + half)


def interval(result: dict, name: str) -> tuple[float, float]:
    """Wilson 95% interval of one of a result's scores."""
    return wilson_interval(round(result[name] * result["items"]), result["items"])
