#!/usr/bin/env python
"""Time the evaluation against clip_benchmark's own, side by side in one run, same model and images.

    python tools/bench_evaluate.py --annotations data/sugar-crepe --output tools/results/bench_evaluate.json

SugarCrepe: the seven real annotation files over synthetic images of COCO size under the real names, both
sides in this process with everything imported; the second run is the whole command, imports included.
Seconds are wall clock and, for a machine that is doing other things too, processor time of all threads
and workers. Retrieval: 5,000 images by 25,000 captions of random embeddings, both ways, with peak memory.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]

#: small towers, so that clip_benchmark's side takes a minute or two; larger ones are with --model
SMALL = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 128, "head_width": 64, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 2},
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--annotations", required=True, help="folder with SugarCrepe's seven json files")
    parser.add_argument("--model", help="OpenCLIP model, random weights (default: a small ViT, see SMALL)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", help="write the numbers there as JSON")
    parser.add_argument("--skip-retrieval", action="store_true")
    args = parser.parse_args()
    report = {
        "hardware": hardware(args.threads),
        "commit": commit(),
        "date": f"{datetime.date.today()}",
        "model": f"{args.model or SMALL}, random weights, fp32, batch 64",
    }
    with tempfile.TemporaryDirectory() as folder:
        report["sugarcrepe"] = bench_sugarcrepe(
            Path(folder), Path(args.annotations), args.model, args.threads
        )
    if not args.skip_retrieval:
        report["retrieval"] = {name: in_process(name) for name in ("ours", "clip_benchmark")}
    print(json.dumps(report, indent=1))
    if args.output:
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
        Path(args.output).write_text(json.dumps(report, indent=1) + "\n")
    return 0


def hardware(threads: int) -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {threads} threads, no GPU"
    return f"{platform.processor() or platform.machine()}, {threads} threads, no GPU"


def commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    return done.stdout.strip()


class Clock:
    """Wall-clock and processor seconds of a ``with`` block, child processes included."""

    def __enter__(self):
        self._start = (time.perf_counter(), self._processor())
        return self

    def __exit__(self, *_):
        self.wall = round(time.perf_counter() - self._start[0], 2)
        self.processor = round(self._processor() - self._start[1], 2)

    @staticmethod
    def _processor() -> float:
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def bench_sugarcrepe(folder: Path, annotations: Path, model: str | None, threads: int) -> dict:
    import torch

    torch.set_num_threads(threads)
    images = lay_out(folder, annotations)
    model = save_model(folder, model)
    first, results, encoded = ours(folder, model)
    second, again = second_run(folder, model, threads)
    theirs, accuracies = clip_benchmarks(folder, model)
    compared = {
        name: {
            "ours": subset["metrics"]["accuracy"]["value"],
            "clip_benchmark": accuracies[name],
            "ties": subset["ties"],
        }
        for name, subset in results["subsets"].items()
    }
    return {
        "items": results["items"],
        "images": images,
        "encoded": encoded,
        "clip_benchmark": {"wall_s": theirs.wall, "processor_s": theirs.processor},
        "ours": {"wall_s": first.wall, "processor_s": first.processor},
        "ratio": {
            "wall": round(first.wall / theirs.wall, 3),
            "processor": round(first.processor / theirs.processor, 3),
        },
        "second_run": {"wall_s": second.wall, "processor_s": second.processor},
        "second_run_identical": again["subsets"] == results["subsets"],
        "accuracies_identical_but_for_ties": all(
            abs(x["ours"] + x["ties"] / results["subsets"][n]["items"] - x["clip_benchmark"]) < 1e-6
            for n, x in compared.items()
        ),
        "accuracies": compared,
    }


def lay_out(folder: Path, annotations: Path) -> int:
    """Annotations as links, and a synthetic 640×480 JPEG of about 130 kB under every real file name."""
    (folder / "sugar-crepe").mkdir()
    (folder / "coco" / "val2017").mkdir(parents=True)
    (folder / "sugar-crepe" / "val2017").symlink_to(folder / "coco" / "val2017")
    names = set()
    for path in annotations.glob("*.json"):
        (folder / "sugar-crepe" / path.name).symlink_to(path.resolve())
        names |= {entry["filename"] for entry in json.loads(path.read_text()).values()}
    pictures = [_picture(seed) for seed in range(40)]
    for number, name in enumerate(sorted(names)):
        # bytes after the end of a JPEG change the file, not the picture: no two files are the same
        (folder / "coco" / "val2017" / name).write_bytes(pictures[number % 40] + name.encode())
    return len(names)


def _picture(seed: int) -> bytes:
    from PIL import Image

    rng = np.random.default_rng(seed)
    blocks = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((640, 480))
    noisy = np.asarray(blocks, dtype=np.int16) + rng.integers(-16, 17, (480, 640, 1), dtype=np.int16)
    stream = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def save_model(folder: Path, name: str | None) -> str:
    """Random weights as ``model.pt`` and the config as ``<name>.json``; the name."""
    import open_clip
    import torch

    config = folder / f"{name or 'bench-small'}.json"
    config.write_text(json.dumps(open_clip.get_model_config(name) if name else SMALL))
    open_clip.add_model_config(config)
    torch.manual_seed(0)
    model = open_clip.create_model(config.stem)
    torch.save({"state_dict": model.state_dict()}, folder / "model.pt")
    return config.stem


def ours(folder: Path, model: str) -> tuple[Clock, dict, dict]:
    """(seconds of the evaluation with an empty store, its result, how much was encoded)."""
    from open_clip_triplet.evaluation.benchmarks import get
    from open_clip_triplet.evaluation.checkpoints.spec import CheckpointSpec
    from open_clip_triplet.evaluation.run import Session, run_checkpoint

    session = Session(
        folder,
        folder / "results",
        folder / "results" / ".embeddings",
        batch_size=64,
        device="cpu",
        allow_partial=False,
        progress=False,
    )
    spec = CheckpointSpec(model, str(folder / "model.pt"), model_config=str(folder / f"{model}.json"))
    with Clock() as clock, contextlib.redirect_stdout(sys.stderr):
        evaluation = run_checkpoint(session, spec, [get("sugarcrepe")])
    return clock, evaluation.results["sugarcrepe"], evaluation.encoded


def second_run(folder: Path, model: str, threads: int) -> tuple[Clock, dict]:
    """(seconds of the whole command with everything stored, its result)."""
    command = [
        *(sys.executable, str(ROOT / "tools" / "evaluate.py"), "run", "--device", "cpu"),
        *("--model-config", str(folder / f"{model}.json"), "--pretrained", str(folder / "model.pt")),
        *("--benchmarks", "sugarcrepe", "--data-root", str(folder), "--output", str(folder / "results")),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    with Clock() as clock:
        subprocess.run(command, check=True, env=environment, stdout=sys.stderr)
    return clock, json.loads((folder / "results" / "model" / "sugarcrepe.json").read_text())


def clip_benchmarks(folder: Path, model: str) -> tuple[Clock, dict[str, float]]:
    """(seconds of its evaluation of the seven subsets, text accuracy of each); loading not counted."""
    import open_clip

    from open_clip_triplet.evaluation.benchmarks.sugarcrepe import SIZES

    clip, _, preprocess = open_clip.create_model_and_transforms(model, pretrained=str(folder / "model.pt"))
    tokenizer = open_clip.get_tokenizer(model)
    clip.eval()
    accuracies = {}
    with Clock() as clock:
        for subset in SIZES:
            accuracies[subset] = _their_accuracy(clip, preprocess, tokenizer, folder, subset)
            print(f"clip_benchmark: {subset} done", file=sys.stderr)
    return clock, accuracies


def _their_accuracy(clip, preprocess, tokenizer, folder: Path, subset: str) -> float:
    import torch
    from clip_benchmark.datasets.builder import build_dataset, get_dataset_collate_fn
    from clip_benchmark.metrics import image_caption_selection

    name, root = f"sugar_crepe/{subset}", str(folder / "sugar-crepe")
    dataset = build_dataset(name, root=root, transform=preprocess, task="image_caption_selection")
    collate = get_dataset_collate_fn(name)
    loader = torch.utils.data.DataLoader(dataset, batch_size=64, num_workers=2, collate_fn=collate)
    with contextlib.redirect_stderr(io.StringIO()):
        return image_caption_selection.evaluate(clip, loader, tokenizer, "cpu", amp=False)["text_acc"]


def in_process(name: str) -> dict:
    """Retrieval in a process of its own, for its own peak memory."""
    code = f"import bench_evaluate as b; b.retrieval({name!r})"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tools'}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1] if done.stderr else f"exit {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def retrieval(name: str) -> None:
    """Recall at 1, 5, 10 both ways over 5,000 × 25,000 random embeddings of width 512; prints JSON."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((5000, 512), dtype=np.float32)
    owner = np.repeat(np.arange(5000), 5)
    texts = images[owner] + 6 * rng.standard_normal((25000, 512), dtype=np.float32)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    recalls = {"ours": _ours_recalls, "clip_benchmark": _their_recalls}[name](images, texts, owner)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        json.dumps({"seconds": round(seconds, 2), "peak_extra_MB": round((peak - before) / 1024), **recalls})
    )


def _ours_recalls(images, texts, owner) -> dict:
    from open_clip_triplet.evaluation.metrics import retrieval_ranks

    ways = zip(("i2t", "t2i"), retrieval_ranks(images, texts, owner))
    return {
        f"{way}_r{k}": round(float((ranking.ranks < k).mean()), 5) for way, ranking in ways for k in (1, 5, 10)
    }


def _their_recalls(images, texts, owner) -> dict:
    import torch
    from clip_benchmark.metrics.zeroshot_retrieval import batchify, recall_at_k

    scores = torch.from_numpy(texts) @ torch.from_numpy(images).T
    positive = torch.zeros_like(scores, dtype=bool)
    positive[torch.arange(len(scores)), torch.from_numpy(owner)] = True
    found = {}
    for k in (1, 5, 10):
        for way, s, p in (("i2t", scores.T, positive.T), ("t2i", scores, positive)):
            hits = batchify(recall_at_k, s, p, 64, "cpu", k=k) > 0
            found[f"{way}_r{k}"] = round(hits.float().mean().item(), 5)
    return found


if __name__ == "__main__":
    sys.exit(main())
