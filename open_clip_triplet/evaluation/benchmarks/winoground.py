"""Winoground: two images, two captions of the same words in another order; 400 items.

Reference: Thrush et al., CVPR 2022; huggingface.co/datasets/facebook/winoground.
"""

from __future__ import annotations

import json
from pathlib import Path

from open_clip_triplet.evaluation.benchmarks.base import Benchmark, find_image, first_file
from open_clip_triplet.evaluation.images import ImageRef
from open_clip_triplet.evaluation.tasks import Pair, PairTask

FILES = ("winoground/data/examples.jsonl", "winoground/examples.jsonl")


def load(root: Path) -> dict[str, PairTask]:
    path = first_file(root, FILES)
    if path is None:
        raise BENCHMARK.missing(root)
    task = PairTask([], expected=400)
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        if line.strip():
            _append(task, line, number, path.parent)
    return {"winoground": task}


def _append(task: PairTask, line: str, number: int, folder: Path) -> None:
    try:
        entry = json.loads(line)
        captions = tuple(str(entry[f"caption_{i}"]) for i in (0, 1))
        images = tuple(_image(folder, str(entry[f"image_{i}"])) for i in (0, 1))
    except (ValueError, KeyError, TypeError):
        task.leave_out("annotation incomplete", f"examples.jsonl line {number + 1}")
        return
    task.items.append(Pair(str(entry.get("id", number)), images, captions))


def _image(folder: Path, name: str) -> ImageRef:
    """An unpacked image, or its member of ``images.zip`` where that was not unpacked."""
    base = name if name.endswith((".png", ".jpg")) else f"{name}.png"
    archive = folder / "images.zip"
    if not (folder / "images").is_dir() and archive.is_file():
        return ImageRef(str(archive), f"images/{base}")
    return find_image([folder / "images"], base)


BENCHMARK = Benchmark(
    name="winoground",
    title="Winoground",
    licence="Meta's research licence; accept it on the Hugging Face page first",
    source="https://huggingface.co/datasets/facebook/winoground (data/examples.jsonl and data/images.zip)",
    layout=("winoground/data/examples.jsonl", "winoground/data/images.zip (or unpacked: images/*.png)"),
    load=load,
    expected={"winoground": 400},
    reference="Thrush et al., CVPR 2022",
)
