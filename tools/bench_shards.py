"""How fast shards are built: packing beside img2dataset, vLLM's shared prefix, resuming a finished run, and
how busy a GPU is kept: engines that sleep as one would (35 images/s, 300 captions/s) stand in for it.

  python tools/bench_shards.py --output tools/results/bench_shards.json \\
      --img2dataset I2D/bin/python --vllm .venv-vllm/bin/python --llm .venv-vllm/smollm2

Each part without its interpreter is left out, and said to be. img2dataset pins old packages, so it
needs an environment of its own: python -m venv I2D && I2D/bin/pip install 'setuptools<81' img2dataset
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

#: runs in img2dataset's environment: (shard of images, output folder) -> CPU seconds on one thread
IMG2DATASET = """
import io, os, sys, tarfile, time
import cv2
import pyarrow
from img2dataset.resizer import Resizer
from img2dataset.writer import WebDatasetSampleWriter
cv2.setNumThreads(1)
start = time.process_time()
tar = tarfile.open(sys.argv[1])
images = [(m.name[:-4], tar.extractfile(m).read()) for m in tar if m.name.endswith('.jpg')]
resizer = Resizer(256, 'keep_ratio', True, encode_quality=95)
os.makedirs(sys.argv[2], exist_ok=True)
schema = pyarrow.schema([('key', pyarrow.string())])
writer = WebDatasetSampleWriter(0, sys.argv[2], True, 5, schema, 'jpg')
for key, data in images:
    image, *_, error = resizer(io.BytesIO(data))
    assert error is None, error
    writer.write(image, key, 'a caption', {'key': key})
writer.close()
print(time.process_time() - start)
"""

#: runs in vLLM's environment: (model, prefix caching 0 or 1, captions) -> seconds
VLLM = """
import json, sys, time
from open_clip_triplet.tripletdata.backends.language import read_prompt
from open_clip_triplet.tripletdata.backends.vllm import Vllm
model = Vllm(sys.argv[1], read_prompt(None, 'prompt_negative.txt'), max_tokens=24, prefix_caching=sys.argv[2] == '1')
model.open('cpu')
captions = [f'A photo of {n} dogs beside a {c} car.' for n in range(2, 10) for c in ('red', 'blue', 'green', 'grey')]
model.propose(captions[:4], list('abcd'), 1, 0)
captions = (captions * 9)[: int(sys.argv[3])]
start = time.perf_counter()
model.propose(captions, [str(i) for i in range(len(captions))], 1, 1)
print('SECONDS', time.perf_counter() - start)
"""

#: runs a command again in a fresh process and tells seconds inside it and heavy modules loaded
RESUME = """
import sys, time
start = time.perf_counter()
from open_clip_triplet.make_shards import main
status = main(sys.argv[1:])
print(status, time.perf_counter() - start, [m for m in ('torch', 'spacy', 'diffusers', 'vllm') if m in sys.modules])
"""


def photo(seed: int, size=(512, 384)) -> bytes:
    """A JPEG with the spectrum of a photograph: noise of every scale, strong edges."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(seed)
    pixels = np.zeros((size[1], size[0], 3))
    for octave in range(1, 8):
        grain = random.normal(0, 60 / octave, (2**octave, 2**octave, 3)) + 128
        layer = Image.fromarray(grain.clip(0, 255).astype("uint8")).resize(size, Image.Resampling.BICUBIC)
        pixels += np.asarray(layer, float) - 128
    buffer = io.BytesIO()
    Image.fromarray((pixels + 128).clip(0, 255).astype("uint8")).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_images(path: Path, images: list[bytes], more: dict | None = None) -> None:
    from open_clip_triplet.shards import ShardWriter

    with ShardWriter(path) as writer:
        for number, data in enumerate(images):
            sample = {"__key__": f"{number:09d}", "jpg": data, "txt": "two red dogs behind a car"}
            writer.write({**sample, **(more or {})})


def bench_packing(folder: Path, python: str | None, count: int, rounds: int) -> dict:
    """Samples per CPU second, medians of alternating rounds: shard in, resized shard out.

    CPU time, so that whatever else the machine is doing counts for neither.
    """
    from open_clip_triplet.tripletdata.run.task import ShardTask
    from open_clip_triplet.tripletdata.run.work import run_task
    from open_clip_triplet.tripletdata.stages.pack import Pack

    shard = folder / "images.tar"
    write_images(shard, [photo(number) for number in range(count)])
    ours, theirs = [], []
    for _ in range(rounds):
        start = time.process_time()
        record = run_task(Pack(256, 95, ()), ShardTask(0, (str(shard),)), folder / "ours")
        ours.append(time.process_time() - start)
        assert record["kept"] == count
        if python:
            output = subprocess.run(
                [python, "-c", IMG2DATASET, shard, folder / "theirs"],
                check=True,
                capture_output=True,
                text=True,
            )
            theirs.append(float(output.stdout.split()[-1]))
    result = {"images": count, "size": "512x384", "ours": round(count / statistics.median(ours), 1)}
    if theirs:
        result["img2dataset"] = round(count / statistics.median(theirs), 1)
        result["ratio"] = round(statistics.median(theirs) / statistics.median(ours), 2)
    return result


def bench_vllm(python: str, model: str, count: int) -> dict:
    """Captions per second with and without the cached prefix, engine start and warm-up left out."""
    seconds = {}
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    for name, flag in (("without", "0"), ("with", "1")):
        command = [python, "-c", VLLM, model, flag, str(count)]
        output = subprocess.run(command, capture_output=True, text=True, env=environment)
        if output.returncode:
            raise SystemExit(f"vLLM failed with status {output.returncode}:\n{output.stderr[-3000:]}")
        seconds[name] = float(output.stdout.split("SECONDS")[-1].split()[0])
    rates = {f"{name}_prefix_cache": round(count / value, 2) for name, value in seconds.items()}
    return {
        "captions": count,
        "model": Path(model).name,
        **rates,
        "ratio": round(seconds["without"] / seconds["with"], 2),
    }


def bench_resume(folder: Path, shards: int) -> dict:
    """Seconds to find that ``pack`` and ``build`` of many shards are finished, in a fresh process."""
    source, image = folder / "many", photo(0, (64, 48))
    for number in range(shards):
        write_images(source / f"{number:05d}.tar", [image])
    result = {"shards": shards}
    captions = ["--backend", "rules", "--no-images"]
    for name, options in (("pack", ["--need"]), ("build", captions)):
        argv = [name, "--input", str(source), "--output", str(folder / name), *options, "--quiet"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        for _ in range(2):
            before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            output = subprocess.run(
                [sys.executable, "-c", RESUME, *argv],
                check=True,
                capture_output=True,
                text=True,
                env=environment,
            )
            seconds = time.perf_counter() - start
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
        status, _, modules = output.stdout.strip().split(" ", 2)
        assert status == "0" and modules == "[]", output.stdout
        result[f"{name}_seconds"] = round(seconds, 2)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        result[f"{name}_cpu_seconds"] = round(used, 2)
    return result


@dataclass
class SleepingImages:
    """Takes the time of a GPU that draws ``rate`` images a second, and no CPU."""

    rate: float
    log: str = ""
    model: str = "sleeping"
    window: int = 16

    def open(self, device: str) -> None:
        from PIL import Image

        self._gpu = threading.Lock()
        self._image = Image.open(io.BytesIO(photo(1, (512, 512)))).convert("RGB")

    def too_long(self, prompts: list[str]) -> list[bool]:
        return [False] * len(prompts)

    def draw(self, prompts: list[str], seeds: list[int], images: list | None = None) -> list:
        _sleep(self, len(prompts) / self.rate)
        return [self._image.copy() for _ in prompts]


@dataclass
class SleepingCaptions:
    """Takes the time of a GPU that writes ``rate`` captions a second, and no CPU."""

    rate: float
    log: str = ""
    model: str = "sleeping"
    prompt: str = "{}"
    retries = False
    in_flight = 2

    def config(self) -> dict:
        return {"rate": self.rate}

    def provenance(self) -> dict:
        return {"llm": self.model}

    def open(self, device: str) -> None:
        self._gpu = threading.Lock()

    def propose(self, captions: list[str], keys: list[str], count: int, attempt: int, progress) -> list:
        _sleep(self, len(captions) / self.rate)
        return [[caption.replace("red", "green")] for caption in captions]


def _sleep(engine, seconds: float) -> None:
    """Be busy, one call at a time, and note from when to when."""
    with engine._gpu:
        start = time.time()
        time.sleep(seconds)
        with open(engine.log, "a") as log:
            log.write(f"{start} {start + seconds}\n")


#: that a sleeping engine works one after another; real ones are 20 times as large
SHARDS = 3


def bench_busy(folder: Path, seconds: float) -> dict:
    """Share of the time that a sleeping engine works while real stages read, encode and write around it, in a
    process of its own as for a GPU: from its first call to the last shard's record.
    """
    from open_clip_triplet.tripletdata.run.plan import plan_tasks
    from open_clip_triplet.tripletdata.run.pool import Pool
    from open_clip_triplet.tripletdata.run.runner import run_stage
    from open_clip_triplet.tripletdata.stages.captions import Captions
    from open_clip_triplet.tripletdata.stages.images import Images

    result = {}
    for name, rate in (("captions", 300), ("images", 35)):
        source, number = folder / f"busy-{name}", int(rate * seconds / SHARDS)
        for shard in range(SHARDS):
            write_images(source / f"{shard:05d}.tar", [photo(0)] * number, {"neg.txt": "two green dogs"})
        log = folder / f"{name}.log"
        model = (SleepingCaptions if name == "captions" else SleepingImages)(rate, str(log))
        stage = Captions(model, images=False) if name == "captions" else Images(model, images=False)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)

        def engine(stage, tasks, output, progress):
            return Pool(stage, tasks, output, ["cpu"], progress).events()

        run = run_stage(stage, plan_tasks(str(source)), folder / name, engine, quiet=True)
        calls = [tuple(map(float, line.split())) for line in log.read_text().splitlines()]
        wall = max(path.stat().st_mtime for path in (folder / name).glob("*.record.json")) - calls[0][0]
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        assert not run.failed and sum(record["kept"] for record in run.records()) == SHARDS * number
        result[name] = {
            "per_second": rate,
            "samples": SHARDS * number,
            "busy_percent": round(100 * sum(end - start for start, end in calls) / wall, 1),
            "cores_used": round(used / wall, 2),
        }
    return result


def processor() -> str:
    names = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="json file of the results")
    parser.add_argument("--img2dataset", metavar="PYTHON", help="python of an environment with img2dataset")
    parser.add_argument("--vllm", metavar="PYTHON", help="python of an environment with vLLM")
    parser.add_argument("--llm", help="model folder for vLLM")
    parser.add_argument("--images", type=int, default=300, help="images to pack (default 300)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of packing (default 5)")
    parser.add_argument("--captions", type=int, default=64, help="captions for vLLM (default 64)")
    parser.add_argument(
        "--busy", type=float, default=20, help="seconds of the sleeping engines each (default 20)"
    )
    parser.add_argument("--only-busy", action="store_true", help="the sleeping engines alone")
    parser.add_argument("--shards", type=int, default=1000, help="shards of the finished run (default 1000)")
    args = parser.parse_args()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    results = {
        "date": str(date.today()),
        "commit": commit.strip(),
        "cores": os.cpu_count(),
        "hardware": processor(),
        "load_before": round(os.getloadavg()[0], 1),
    }
    with tempfile.TemporaryDirectory() as folder:
        results["busy_gpu"] = bench_busy(Path(folder), args.busy)
        if not args.only_busy:
            results["packing_samples_per_s_per_core"] = bench_packing(
                Path(folder), args.img2dataset, args.images, args.rounds
            )
            results["resume_of_a_finished_run"] = bench_resume(Path(folder), args.shards)
    if args.vllm:
        results["vllm_captions_per_s"] = bench_vllm(args.vllm, args.llm, args.captions)
    text = json.dumps(results, indent=1)
    print(text)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
