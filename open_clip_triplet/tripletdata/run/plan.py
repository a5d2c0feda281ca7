"""``--dry-run``: what would be done, the disk it takes and the GPU-hours to expect."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from open_clip_triplet.tripletdata.run.source import Unit, known_samples

#: samples per second of one GPU: the paper's account (Mistral-7B on an A6000, SDXL-Turbo on a V100);
#: scores by arithmetic, as nobody has told: two images and two texts through ViT-L/14 are about
#: 0.4 TFLOP, at 40 TFLOP/s in half precision
RATES = {"rewrite": 6.3, "captions": 6.3, "images": 2.5, "scores": 100}
#: bytes of a 256-pixel JPEG of quality 95, as SDXL-Turbo's come out
IMAGE_BYTES = 25_000
TEXT_BYTES = 2_500


def print_plan(args, units: list[Unit], stages: list[str], *, negatives: int = 1) -> int:
    """Print the plan of ``stages`` (model stages, in order) over ``units``; returns 0."""
    samples, size = estimate(units)
    print(f"input    {len(units):,} shards, about {samples:,} samples, {human(size)}")
    hours = 0.0
    for stage in stages:
        work = samples * (negatives if stage == "captions" else 1)
        cost = work / RATES[stage] / 3600
        hours += cost
        source = "an estimate" if stage == "scores" else "the paper's rate"
        print(f"{stage:8} {work:,} at {RATES[stage]}/s per GPU ({source}): {cost:,.1f} GPU-hours")
    disk = 0 if getattr(args, "text_only", False) else size
    disk += samples * TEXT_BYTES * (1 + len(stages)) + (
        samples * IMAGE_BYTES * 2 if "images" in stages else 0
    )
    folder = Path(args.output).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    print(f"disk     at most {human(disk)} in {args.output} ({human(free)} free there)")
    if disk > free:
        print("         That is more than there is.")
    print(f"total    {hours:,.1f} GPU-hours; {hours / 8:,.1f} hours on 8 GPUs")
    return 0


def estimate(units: list[Unit]) -> tuple[int, int]:
    """(samples, bytes) of the input: counted where sizes are recorded, else from the first shard's mean."""
    size = sum(os.path.getsize(path) for path in {u.inputs[0] for u in units} if os.path.exists(path))
    samples = known_samples(units)
    if samples is None:
        first = next((unit for unit in units if os.path.exists(unit.inputs[0])), None)
        if first is None:
            return 0, 0
        from open_clip_triplet.shards import read_samples

        count = sum(1 for _ in read_samples(first.inputs[0]))
        samples = round(size / max(os.path.getsize(first.inputs[0]), 1) * count)
    elif units and units[0].rows:
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
