"""``--dry-run``: what would be done, the disk it takes and the GPU-hours to expect."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

from open_clip_triplet import files
from open_clip_triplet.errors import PipelineError, ShardError
from open_clip_triplet.shards import ShardWriter
from open_clip_triplet.tripletdata.run.plan import known_samples
from open_clip_triplet.tripletdata.run.sample import Stats
from open_clip_triplet.tripletdata.run.stage import Stage
from open_clip_triplet.tripletdata.run.task import ShardTask

#: samples per second of one GPU: the paper's account (Mistral-7B on an A6000, SDXL-Turbo on a V100);
#: scores by arithmetic, as nobody has told: two images and two texts through ViT-L/14 are about
#: 0.4 TFLOP, at 40 TFLOP/s in half precision
RATES = {"rewrite": 6.3, "captions": 6.3, "images": 2.5, "scores": 100}
#: bytes of a 256-pixel JPEG of quality 95, as SDXL-Turbo's come out
IMAGE_BYTES = 25_000
TEXT_BYTES = 2_500
#: samples that --calibrate works
CALIBRATION = 64


def rate(text: str) -> tuple[str, float]:
    """argparse type of ``stage=samples per second of one GPU``."""
    stage, _, number = text.partition("=")
    try:
        value = float(number)
    except ValueError:
        value = 0.0
    if stage not in RATES or value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not STAGE=SAMPLES_PER_SECOND ({', '.join(RATES)})")
    return stage, value


def print_plan(args, tasks: list[ShardTask], stages: list[Stage]) -> int:
    """Print the plan of ``stages`` (in order; those without a model cost no GPU) over ``tasks``; returns 0."""
    samples, size = estimate(tasks)
    print(f"input    {len(tasks):,} shards, about {samples:,} samples, {human(size)}")
    modelled = [stage for stage in stages if stage.uses_gpu and stage.name in RATES]
    rates = {name: (value, "given") for name, value in args.rates}
    if args.calibrate and any(stage.name in RATES for stage in stages):
        rates.update({name: (value, "measured here") for name, value in calibrate(tasks, stages).items()})
    hours = paper_hours = 0.0
    for stage in modelled:
        work = samples * getattr(stage, "negatives", 1)
        default = (RATES[stage.name], "an estimate" if stage.name == "scores" else "the paper's rate")
        speed, source = rates.get(stage.name, default)
        hours += work / speed / 3600
        paper_hours += work / RATES[stage.name] / 3600
        beside = f" (the paper's {RATES[stage.name]}/s: {work / RATES[stage.name] / 3600:,.1f})"
        print(
            f"{stage.name:8} {work:,} at {speed:.4g}/s per GPU ({source}): {work / speed / 3600:,.1f} GPU-hours"
            f"{beside if stage.name in rates and stage.name != 'scores' else ''}"
        )
    for stage in stages:
        if stage not in modelled and stage.name in rates:
            work, (speed, source) = samples * getattr(stage, "negatives", 1), rates[stage.name]
            print(
                f"{stage.name:8} {work:,} at {speed:.4g}/s per process ({source}): {work / speed / 3600:,.1f} "
                "CPU-hours, no GPU"
            )
    _print_disk(args, samples, size, stages, len(modelled))
    beside = f" (at the paper's rates {paper_hours:,.1f} and {paper_hours / 8:,.1f})" if rates else ""
    print(f"total    {hours:,.1f} GPU-hours; {hours / 8:,.1f} hours on 8 GPUs{beside}")
    return 0


def _print_disk(args, samples: int, size: int, stages: list[Stage], modelled: int) -> None:
    disk = 0 if getattr(args, "text_only", False) else size
    disk += samples * TEXT_BYTES * (1 + modelled)
    if any(stage.name in ("images", "import") for stage in stages):
        disk += samples * IMAGE_BYTES * 2
    if files.is_remote(args.output):
        print(f"disk     at most {human(disk)} in {args.output}")
        return
    folder = Path(files.local_path(args.output)).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    print(f"disk     at most {human(disk)} in {args.output} ({human(free)} free there)")
    if disk > free:
        print("         That is more than there is.")


def calibrate(tasks: list[ShardTask], stages: list[Stage]) -> dict[str, float]:
    """Samples per second of each stage on this machine's device, over the first 64 samples.

    The models are loaded, and warm up on the first 8 samples, before the clock starts.

    Raises:
        PipelineError: the input holds no sample, or a stage keeps none.
    """
    import torch

    from open_clip_triplet.tripletdata.run.work import run_task

    found: dict[str, float] = {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        source = replace(tasks[0], policy=replace(tasks[0].policy, max_drop=1.0))
        whole, few = (_first(source, number, f"{folder}/{number}.tar") for number in (CALIBRATION, 8))
        for stage in stages:
            print(f"calibrating {stage.name} on {CALIBRATION} samples", file=sys.stderr)
            stage.open(device if stage.uses_gpu else "cpu")
            run_task(stage, few, f"{folder}/{stage.name}-few")
            start = time.perf_counter()
            record = run_task(stage, whole, f"{folder}/{stage.name}")
            seconds = time.perf_counter() - start
            if not record["kept"]:
                raise PipelineError(f"{stage.name} keeps none of the first {CALIBRATION} samples", 3)
            if stage.name in RATES:
                found[stage.name] = record["read"] * getattr(stage, "negatives", 1) / seconds
            whole = whole.beside(f"{folder}/{stage.name}/{whole.shard}")
            few = few.beside(f"{folder}/{stage.name}-few/{few.shard}")
    return found


def _first(task: ShardTask, number: int, path: str) -> ShardTask:
    """A task of the first samples of another, in a shard of its own."""
    with ShardWriter(path) as writer:
        for sample in islice(task.samples(Stats()), number):
            writer.write(sample.members())
    if not len(writer):
        raise PipelineError(f"{task.inputs[0]}: holds no usable sample", 3)
    return task.on(path)


def estimate(tasks: list[ShardTask]) -> tuple[int, int]:
    """(samples, bytes) of the input: counted where sizes are recorded, else from the first shard's mean."""
    sizes: dict[str, int] = {}
    for task in tasks:
        url = task.inputs[0]
        with contextlib.suppress(ShardError):
            folder = not files.is_remote(url) and os.path.isdir(url)
            sizes[url] = sum(files.list_files(url).values()) if folder else task.identity()[0].get("bytes", 0)
    size, samples = sum(sizes.values()), known_samples(tasks)
    if samples is None:
        first = next((task for task in tasks if sizes.get(task.inputs[0])), None)
        if first is None:
            return 0, 0
        stats = Stats()
        for _ in replace(first, policy=replace(first.policy, salvage=True)).samples(stats, images=False):
            pass
        samples = round(size / sizes[first.inputs[0]] * stats.read)
    elif tasks and tasks[0].rows:
        size = samples * IMAGE_BYTES
    return samples, size


def human(number: float) -> str:
    """Bytes for people.

    >>> human(1_500_000)
    '1.5 MB'
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 1000 or unit == "TB":
            return f"{number:.0f} B" if unit == "B" else f"{number:,.1f} {unit}"
        number /= 1000
    raise AssertionError
