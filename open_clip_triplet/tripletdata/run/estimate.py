"""``--dry-run``: what would be done, the disk it takes and the GPU-hours to expect."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from open_clip_triplet.tripletdata.run.plan import known_samples
from open_clip_triplet.tripletdata.run.task import ShardTask

#: samples per second of one GPU: the paper's account (Mistral-7B on an A6000, SDXL-Turbo on a V100);
#: scores by arithmetic, as nobody has told: two images and two texts through ViT-L/14 are about
#: 0.4 TFLOP, at 40 TFLOP/s in half precision
RATES = {"rewrite": 6.3, "captions": 6.3, "images": 2.5, "scores": 100}
#: bytes of a 256-pixel JPEG of quality 95, as SDXL-Turbo's come out
IMAGE_BYTES = 25_000
TEXT_BYTES = 2_500


def print_plan(args, tasks: list[ShardTask], stages: list) -> int:
    """Print the plan of ``stages`` (in order; those without a model cost no GPU) over ``tasks``; returns 0."""
    samples, size = estimate(tasks)
    print(f"input    {len(tasks):,} shards, about {samples:,} samples, {human(size)}")
    hours = 0.0
    modelled = [stage for stage in stages if stage.uses_gpu and stage.name in RATES]
    for stage in modelled:
        work = samples * getattr(stage, "negatives", 1)
        cost = work / RATES[stage.name] / 3600
        hours += cost
        source = "an estimate" if stage.name == "scores" else "the paper's rate"
        print(f"{stage.name:8} {work:,} at {RATES[stage.name]}/s per GPU ({source}): {cost:,.1f} GPU-hours")
    disk = 0 if getattr(args, "text_only", False) else size
    disk += samples * TEXT_BYTES * (1 + len(modelled))
    if any(stage.name == "images" for stage in stages):
        disk += samples * IMAGE_BYTES * 2
    folder = Path(args.output).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    print(f"disk     at most {human(disk)} in {args.output} ({human(free)} free there)")
    if disk > free:
        print("         That is more than there is.")
    print(f"total    {hours:,.1f} GPU-hours; {hours / 8:,.1f} hours on 8 GPUs")
    return 0


def estimate(tasks: list[ShardTask]) -> tuple[int, int]:
    """(samples, bytes) of the input: counted where sizes are recorded, else from the first shard's mean."""
    size = sum(os.path.getsize(path) for path in {u.inputs[0] for u in tasks} if os.path.exists(path))
    samples = known_samples(tasks)
    if samples is None:
        first = next((task for task in tasks if os.path.exists(task.inputs[0])), None)
        if first is None:
            return 0, 0
        from open_clip_triplet.shards import read_samples

        count = sum(1 for _ in read_samples(first.inputs[0]))
        samples = round(size / max(os.path.getsize(first.inputs[0]), 1) * count)
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
