"""Retrieval with long captions: DOCCI's test split (5,000) and Urban1k (1,000), one caption an image.

Captions are longer than CLIP's 77 tokens; how many were cut stands in the result.
Reference: Onoe et al., ECCV 2024 (DOCCI); Zhang et al., ECCV 2024 (Urban1k, with Long-CLIP).
"""

from __future__ import annotations

import json
from pathlib import Path

from open_clip_triplet.evaluation.benchmarks.base import (
    Benchmark,
    find_image,
    first_file,
    first_folder,
    is_caption,
    read_text,
)
from open_clip_triplet.evaluation.tasks import Captioned, RetrievalTask

SIZES = {"docci": 5000, "urban1k": 1000}


def load(root: Path) -> dict[str, RetrievalTask]:
    found = {"docci": _docci(root), "urban1k": _urban(root)}
    return {name: task for name, task in found.items() if task is not None}


def _docci(root: Path) -> RetrievalTask | None:
    """Lines of ``{"split": ..., "image_file": ..., "description": ...}``."""
    path = first_file(root, ["docci/docci_descriptions.jsonlines"])
    if path is None:
        return None
    task = RetrievalTask([], expected=SIZES["docci"])
    for number, line in enumerate(read_text(path).split("\n"), 1):
        try:
            entry = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            entry = {}
        if entry is None or (isinstance(entry, dict) and entry.get("split", "test") != "test"):
            continue
        image, caption = (
            entry.get(x) if isinstance(entry, dict) else None for x in ("image_file", "description")
        )
        if not is_caption(image) or not is_caption(caption):
            task.add(None, f"{path.name} line {number}")
            continue
        task.items.append(Captioned(image, find_image([path.parent / "images"], image), (caption,)))
    return task


def _urban(root: Path) -> RetrievalTask | None:
    """An image and a text file of one name in two folders; the caption is the first line, as the authors read it."""
    folder = first_folder(root, ["Urban1k", "urban1k"])
    if folder is None or not (folder / "caption").is_dir():
        return None
    task = RetrievalTask([], expected=SIZES["urban1k"])
    for path in sorted((folder / "caption").glob("*.txt")):
        caption = (read_text(path).splitlines() or [""])[0].strip()
        if is_caption(caption):
            image = find_image([folder / "image"], f"{path.stem}.jpg")
            task.items.append(Captioned(path.stem, image, (caption,)))
        else:
            task.leave_out("caption empty", path.name)
    return task


BENCHMARK = Benchmark(
    name="long_retrieval",
    title="Long-caption retrieval",
    licence="DOCCI CC BY 4.0; Urban1k CC BY-NC 4.0",
    source="https://google.github.io/docci and https://huggingface.co/datasets/BeichenZhang/Urban1k",
    layout=(
        "docci/docci_descriptions.jsonlines",
        "docci/images/*.jpg",
        "Urban1k/caption/*.txt",
        "Urban1k/image/*.jpg",
    ),
    loader=load,
    expected=SIZES,
    size="DOCCI 7.6 GB, Urban1k 0.1 GB",
    reference="Onoe et al., ECCV 2024; Zhang et al., ECCV 2024",
)
