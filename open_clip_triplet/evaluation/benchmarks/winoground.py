"""Winoground: two images, two captions of the same words in another order; 400 items.

Reference: Thrush et al., CVPR 2022; huggingface.co/datasets/facebook/winoground.
"""

from __future__ import annotations

import json
from pathlib import Path

from open_clip_triplet.evaluation.benchmarks.base import (
    Benchmark,
    Headline,
    find_image,
    first_file,
    is_caption,
    read_text,
)
from open_clip_triplet.evaluation.images import ImageRef
from open_clip_triplet.evaluation.tasks import Pair, PairTask

FIELDS = ("caption_0", "caption_1", "image_0", "image_1")
TAGS = ("Object", "Relation", "Both", "1 main predicate", "2 main predicates")
SCORES = ("text", "image", "group")
FILES = ("winoground/data/examples.jsonl", "winoground/examples.jsonl")


def load(root: Path) -> dict[str, PairTask]:
    path = first_file(root, FILES)
    if path is None:
        raise BENCHMARK.missing(root)
    task = PairTask([], expected=400)
    for number, line in enumerate(read_text(path).splitlines()):
        if line.strip():
            _append(task, line, number, path.parent)
    return {"winoground": task}


def _append(task: PairTask, line: str, number: int, folder: Path) -> None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        entry = None
    entry = entry if isinstance(entry, dict) else {}
    if not all(is_caption(entry.get(name)) for name in FIELDS):
        task.leave_out("annotation incomplete", f"examples.jsonl line {number + 1}")
        return
    caption_0, caption_1, image_0, image_1 = (entry[name] for name in FIELDS)
    images = (_image(folder, image_0), _image(folder, image_1))
    task.items.append(Pair(str(entry.get("id", number)), images, (caption_0, caption_1), _groups(entry)))


def _groups(entry: dict) -> tuple[str, ...]:
    """The linguistic and visual tags that the authors report by."""
    collapsed, predicates = entry.get("collapsed_tag"), entry.get("num_main_preds")
    groups = [collapsed] if is_caption(collapsed) else []
    if predicates == 1 or predicates == 2:
        groups.append(f"{predicates} main predicate{'s' * (predicates - 1)}")
    secondary = entry.get("secondary_tag")
    if is_caption(secondary):
        groups += [tag for part in secondary.split(",") if (tag := part.strip())]
    return tuple(dict.fromkeys(groups))


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
    headlines=(
        *(Headline(f"{score} score", score, "winoground") for score in SCORES),
        *(Headline(f"{tag}, {score}", score, "winoground", tag) for tag in TAGS for score in SCORES),
    ),
    reference="Thrush et al., CVPR 2022",
)
