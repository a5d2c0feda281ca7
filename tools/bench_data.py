#!/usr/bin/env python
"""Images per second and core of the data pipeline: stock OpenCLIP's and Energon's beside ours, alternating in one run.

    python tools/bench_data.py --images photos/ --out tools/results/bench_data.json

Shards are made in a temporary folder from the photos of ``--images`` (any folder of JPEGs), turned to
landscape and resized to each of ``--sizes``. Every pipeline reads the same shards with one worker: once as
plain pairs, as ``--loss clip`` does, and once as samples with a negative image and a negative caption, as
``--loss triplet`` does. Per core means per second of the worker's processor time, which other load on the
machine disturbs least; images per second of wall time stand beside it.

Stock is OpenCLIP's own loader; for samples with negatives, which it cannot read, it is OpenCLIP's list of
webdataset stages with the negative members added. The row of Energon needs ``pip install megatron-energon``.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib.metadata
import io
import itertools
import json
import logging
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import torch

from bench_peers import ENERGON_MISSING, energon_loader, prepare_energon, stock_loader
from open_clip_triplet.data import get_paired_dataset
from open_clip_triplet.data.captions import CaptionChoice
from open_clip_triplet.data.device import ToDevice
from open_clip_triplet.data.images import (
    FastImages,
    PilImages,
    crop_boxes,
    decode_fast,
    decode_pil,
    decode_scale,
    resize_box,
)
from open_clip_triplet.data.reading import read_shard
from open_clip_triplet.files import write_text_durably
from open_clip_triplet.losses.methods import METHODS
from open_clip_triplet.shards import ShardWriter, expand_shards, write_sizes

CAPTION = "A brown dog runs through tall grass while two children in red jackets watch from the fence."
TICKS = os.sysconf("SC_CLK_TCK")
OURS = ("pil", "fast")
PEERS = () if ENERGON_MISSING else ("energon",)
ROWS = ("stock", *PEERS, *OURS)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of JPEG photos")
    parser.add_argument("--sizes", default="512x384,1024x768", help="width x height (default %(default)s)")
    parser.add_argument("--quality", type=int, default=90, help="JPEG quality (default %(default)s)")
    parser.add_argument("--samples", type=int, default=1280, help="per size and round (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="default %(default)s")
    parser.add_argument("--out", type=Path, help="write the numbers here as JSON")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    warnings.filterwarnings("ignore", message=".*pin_memory")  # Energon asks for it without a GPU too
    torch.set_num_threads(1)
    photos = [path.read_bytes() for path in sorted(options.images.glob("*.jpg"))]
    if not photos:
        parser.error(f"no .jpg in {options.images}")
    results = {"machine": machine(), "settings": {k: str(v) for k, v in vars(options).items()}}
    if ENERGON_MISSING:
        print(ENERGON_MISSING)
    with tempfile.TemporaryDirectory() as folder:
        for size in options.sizes.split(","):
            width, height = (int(side) for side in size.split("x"))
            encoded = encode(photos, (width, height), options.quality)
            spec = make_shards(Path(folder) / size, encoded, options.samples)
            paired = make_shards(Path(folder) / f"{size}-paired", encoded, options.samples, negatives=True)
            for made in (spec, paired) if PEERS else ():
                prepare_energon(Path(made).parent)
            results[size] = throughput(spec, options.rounds)
            results[size]["paired"] = throughput(paired, options.rounds, negatives=True)
            results[size]["milliseconds per image"] = stages(spec, (height, width))
            results[size]["decoders"] = decoders(first_images(spec, 50), (height, width))
            report_size(size, results[size])
        first = options.sizes.split(",")[0]
        few = first_images(f"{folder}/{first}/{{00000..00019}}.tar", len(photos))
        results["first batch"] = first_batch(Path(folder) / "many", few, options.rounds)
        results["two workers"] = two_workers(f"{folder}/{first}/{{00000..00019}}.tar", options.rounds)
    report_rest(results)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_text_durably(options.out, json.dumps(results, indent=1) + "\n")
        print(f"written to {options.out}")
    return 0


def machine() -> dict:
    """Hardware, date, commit and versions that the numbers belong to."""
    model = [line for line in open("/proc/cpuinfo") if line.startswith("model name")]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {
        "cpu": model[0].split(":")[1].strip() if model else platform.processor(),
        "cores": os.cpu_count(),
        "load before": os.getloadavg()[0],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "open_clip": open_clip.__version__,
        "energon": None if ENERGON_MISSING else importlib.metadata.version("megatron-energon"),
    }


def encode(photos: list[bytes], size: tuple[int, int], quality: int) -> list[bytes]:
    """The photos as landscape JPEGs of ``size``, width x height."""
    from PIL import Image

    encoded = []
    for photo in photos:
        image = Image.open(io.BytesIO(photo)).convert("RGB")
        if image.width < image.height:
            image = image.rotate(90, expand=True)
        buffer = io.BytesIO()
        image.resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=quality)
        encoded.append(buffer.getvalue())
    print(
        f"{size[0]}x{size[1]}: {len(encoded)} photos, {statistics.mean(map(len, encoded)) / 1000:.0f} kB each"
    )
    return encoded


def make_shards(folder: Path, encoded: list[bytes], samples: int, shards: int = 20, negatives: bool = False) -> str:
    """Shards of ``samples`` pairs in all, with a negative image and caption if asked; returns their brace spelling."""
    sizes = {}
    for shard in range(shards):
        with ShardWriter(folder / f"{shard:05d}.tar") as writer:
            for number in range(shard, samples, shards):
                photo, other = (encoded[(number + step) % len(encoded)] for step in (0, 1))
                sample = {"__key__": f"{number:06d}", "jpg": photo, "txt": f"{CAPTION} {number}"}
                if negatives:
                    sample |= {"neg.jpg": other, "neg.txt": f"{CAPTION} Not {number}"}
                writer.write(sample)
        sizes[f"{shard:05d}.tar"] = len(writer)
    write_sizes(folder, sizes)
    return f"{folder}/{{00000..{shards - 1:05d}}}.tar"


def loader(pipeline: str, spec: str, workers: int = 1, batch_size: int = 64, negatives: bool = False):
    """A training loader over the shards: ``stock``, ``energon``, ``pil`` or ``fast``."""
    args = SimpleNamespace(
        train_data=spec,
        train_num_samples=None,
        dataset_resampled=False,
        train_data_upsampling_factors=None,
        batch_size=batch_size,
        workers=workers,
        world_size=1,
        rank=0,
        seed=0,
        distributed=False,
        accum_freq=1,
        device="cuda" if torch.cuda.is_available() else "cpu",
        neg_captions=1,
        caption_sampling="first",
        image_decoder=pipeline,
        same_crop=False,
        data_streams=None,
        data_stage=[],
        max_bad_fraction=0.5,
    )
    transform = open_clip.image_transform(224, is_train=True)
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    if pipeline not in OURS:
        peer = {"stock": stock_loader, "energon": energon_loader}[pipeline]
        return peer(args, transform, tokenizer, negatives=negatives)
    method = METHODS["triplet" if negatives else "clip"]
    return get_paired_dataset(args, transform, True, tokenizer=tokenizer, method=method).dataloader


def processor_seconds() -> float:
    """Processor time of all living worker processes."""
    used = 0
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()
        used += int(fields[11]) + int(fields[12])
    return used / TICKS


def peak_memory() -> float:
    """Largest resident size of a living worker so far, MiB."""
    peaks = [0]
    for child in multiprocessing.active_children():
        status = Path(f"/proc/{child.pid}/status").read_text()
        peaks += [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")]
    return max(peaks) / 1024


def run(pipeline: str, spec: str, workers: int = 1, *, negatives: bool = False, finish: bool = True) -> dict:
    """One epoch: images per second of wall time and of worker time, from the first batch on, and memory.

    finish: what the training process does to a batch is done too; else it is dropped as it arrives.
    """
    gc.collect()  # ends the workers of the loader before
    if alive := multiprocessing.active_children():
        raise RuntimeError(f"processes of an earlier loader would be counted: {alive}")
    made = loader(pipeline, spec, workers, negatives=negatives)
    # a piece is a batch's share of one stream; there is one for each worker
    batches = iter(made) if finish else itertools.islice(made.from_workers(), made.num_batches * workers)
    next(batches)
    start, used, images, wall, busy, memory = time.perf_counter(), processor_seconds(), 0, 0.0, 0.0, 0.0
    for batch in batches:
        images += len(batch[0])
        if multiprocessing.active_children():  # the workers may be gone with the last batch
            wall, busy = time.perf_counter() - start, processor_seconds() - used
            memory = max(memory, peak_memory())
            counted = images
    return {"per second": counted / wall, "per core": counted / busy, "memory": memory}


def throughput(spec: str, rounds: int, negatives: bool = False) -> dict:
    """Median over rounds in which the pipelines take turns."""
    found: dict = {name: [] for name in ROWS}
    for number in range(rounds):
        for name in found:
            print(f"\r  round {number + 1} of {rounds}: {name}   ", end="", file=sys.stderr, flush=True)
            found[name].append(run(name, spec, negatives=negatives))
    print("\r" + " " * 40, end="\r", file=sys.stderr)
    table = {
        name: {key: statistics.median(one[key] for one in runs) for key in runs[0]} | {"rounds": runs}
        for name, runs in found.items()
    }
    ratios = {
        name: [row["per core"] / stock["per core"] for row, stock in zip(found[name], found["stock"])]
        for name in ROWS[1:]
    }
    return table | {f"{name} / stock": statistics.median(ratios[name]) for name in ROWS[1:]}


def first_images(spec: str, number: int) -> list[bytes]:
    """Encoded images of the first shards, in order."""
    samples = (s for url in expand_shards(spec) for _, s in read_shard(url, ("image",)))
    return [sample["image"] for sample in itertools.islice(samples, number)]


def stages(spec: str, size: tuple[int, int], number: int = 200) -> dict:
    """Where one image's time goes in ``fast``, and in ``pil`` for comparison, on warm caches."""
    shard = spec.replace("{00000..00019}", "00000")
    samples = [s for _, s in read_shard(shard, ("image", "text"))][:number]
    encoded, texts = [s["image"] for s in samples], [s["text"].decode() for s in samples]
    transform = open_clip.image_transform(224, is_train=True)
    fast, crop = FastImages(transform), transform.transforms[0]
    (box,) = crop_boxes(crop, [size], same=False)
    precision = decode_scale(box, crop.size)
    pixels = [decode_fast(data, *precision) for data in encoded]
    made = [resize_box(p, size, box, crop.size) for p in pixels]
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    pictures = [decode_pil(data) for data in encoded]
    batch = [torch.stack(made)], [tokenizer(texts)]
    finish = ToDevice("cuda" if torch.cuda.is_available() else "cpu", fast.normalize)
    count, choose = len(samples), CaptionChoice()
    return {
        "tar": clock(lambda: list(read_shard(shard, ("image", "text")))) / count,
        "captions": clock(
            lambda: [
                choose(s, None, keep_first=False) for s in samples
            ]
        )
        / count,
        "tokenize": clock(lambda: tokenizer(texts)) / count,
        "fast: decode": clock(lambda: [decode_fast(data, *precision) for data in encoded]) / count,
        "fast: crop and resize": clock(
            lambda: [resize_box(p, size, box, crop.size) for p in pixels]
        )
        / count,
        "fast: all of the image": clock(lambda: [fast([data], 0, 0) for data in encoded]) / count,
        "fast: batch": clock(lambda: torch.stack(made)) / count,
        "fast: to device and normalise": clock(lambda: finish(*batch)) / count,
        "pil: transform": clock(lambda: [transform(picture) for picture in pictures]) / count,
        "pil: all of the image": clock(lambda: [PilImages(transform)([data], 0) for data in encoded]) / count,
    }


def decoders(encoded: list[bytes], size: tuple[int, int]) -> dict:
    """Milliseconds per image of the JPEG decoders that were candidates, and the difference of fast to pil.

    The difference is the mean over the images of the mean absolute one, in levels of 255, same crops.
    """
    from PIL import Image
    from torchvision.io import ImageReadMode, decode_jpeg

    transform = open_clip.image_transform(224, is_train=True)
    pil, fast = PilImages(transform), FastImages(transform)
    part, coarse = decode_scale((0, 0, *size), (224, 224))

    def draft(data):
        image = Image.open(io.BytesIO(data))
        image.draft("RGB", (size[1] // part, size[0] // part))
        return np.array(image)

    candidates = {
        f"simplejpeg at 1/{part} as chosen": lambda data: decode_fast(data, part, coarse),
        "simplejpeg whole": lambda data: decode_fast(data, 1),
        "torchvision whole": lambda data: decode_jpeg(
            torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB
        ),
        f"PIL draft at 1/{part}": draft,
        "PIL whole": lambda data: np.array(decode_pil(data)),
    }
    costs = {name: sum(clock(partial(work, data)) for data in encoded) for name, work in candidates.items()}
    std = torch.tensor(transform.transforms[-1].std)[:, None, None]
    finish = ToDevice("cpu", fast.normalize)
    levels = []
    for number, data in enumerate(encoded):
        made, _ = finish([torch.stack(fast([data], number))], [torch.zeros(1)])
        levels.append(((made[0] - pil([data], number)[0]) * std * 255).abs().mean().item())
    found = {name: cost / len(encoded) for name, cost in costs.items()}
    return found | {"difference of fast to pil, of 255": statistics.mean(levels)}


def clock(work, repeats: int = 3) -> float:
    """Least processor time of some repeats, milliseconds."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best * 1000


def first_batch(folder: Path, encoded: list[bytes], rounds: int, shards: int = 1000) -> dict:
    """Seconds from building the loader to its first batch, over as many shards of eight samples.

    What Energon's index of the shards takes, once, before it can read them at all, stands beside. It refuses
    keys that repeat, so the shards cannot be links to a few.
    """
    spec = make_shards(folder, encoded, 8 * shards, shards)
    prepared = prepare_energon(folder) if PEERS else None
    found: dict = {name: [] for name in ROWS}
    for _ in range(rounds):
        for name, times in found.items():
            start = time.perf_counter()
            batches = iter(loader(name, spec))
            next(batches)
            times.append(time.perf_counter() - start)
            del batches
    table = {name: statistics.median(times) for name, times in found.items()}
    return table | ({"energon prepare": prepared} if PEERS else {})


def two_workers(spec: str, rounds: int) -> dict:
    """Images per second of wall time of ``fast`` with one worker and with two, as batches leave the workers."""
    pairs = [
        tuple(run("fast", spec, workers, finish=False)["per second"] for workers in (1, 2))
        for _ in range(rounds)
    ]
    one, two = (statistics.median(values) for values in zip(*pairs))
    return {"one": one, "two": two, "ratio": statistics.median(b / a for a, b in pairs)}


def report_size(size: str, found: dict) -> None:
    for title, table in (("pairs", found), ("with negatives", found["paired"])):
        print(f"{title:14}{'images/s/core':>15}{'x stock':>9}{'images/s':>10}{'peak MiB':>10}")
        for name in ROWS:
            row, ratio = table[name], table.get(f"{name} / stock", 1.0)
            print(f"{name:14}{row['per core']:15.0f}{ratio:9.2f}{row['per second']:10.0f}{row['memory']:10.0f}")
    for name, cost in found["milliseconds per image"].items():
        print(f"    {name:32}{cost:7.3f} ms")
    for name, value in found["decoders"].items():
        print(f"    {name:32}{value:7.3f}")


def report_rest(results: dict) -> None:
    times = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in results["first batch"].items())
    print(f"first batch over 1,000 shards: {times}")
    pair = results["two workers"]
    print(
        f"fast, two workers against one: {pair['two']:.0f} / {pair['one']:.0f} images/s = {pair['ratio']:.2f}"
    )


if __name__ == "__main__":
    sys.exit(main())
