"""Winoground: two images, two captions of the same words in another order; 400 items.

Reference: Thrush et al., CVPR 2022; huggingface.co/datasets/facebook/winoground.
"""

from __future__ import annotations

import json
from pathlib import Path

from open_clip_triplet.evaluation.benchmarks.base import (
    Benchmark,
    Headline,
    first_file,
    image_or_zipped,
    is_caption,
    read_text,
)
from open_clip_triplet.evaluation.tasks import Pair, PairTask

FIELDS = ("caption_0", "caption_1", "image_0", "image_1")
TAGS = ("Object", "Relation", "Both", "1 main predicate", "2 main predicates")
SCORES = ("text", "image", "group")
FILES = ("winoground/data/examples.jsonl", "winoground/examples.jsonl")


def load(root: Path) -> dict[str, PairTask]:
    path = first_file(root, FILES)
    if path is None:
        return {}
    task = PairTask([], expected=400)
    for number, line in enumerate(read_text(path).split("\n")):
        if line.strip():
            task.add(_item(line, number, path.parent), f"{path.name} line {number + 1}")
    return {"winoground": task}


def _item(line: str, number: int, folder: Path) -> Pair | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        entry = None
    entry = entry if isinstance(entry, dict) else {}
    if not all(is_caption(entry.get(name)) for name in FIELDS):
        return None
    caption_0, caption_1, image_0, image_1 = (entry[name] for name in FIELDS)
    names = (name if name.endswith((".png", ".jpg")) else f"{name}.png" for name in (image_0, image_1))
    first, second = (image_or_zipped(folder, name) for name in names)
    return Pair(str(entry.get("id", number)), (first, second), (caption_0, caption_1), _groups(entry))


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


BENCHMARK = Benchmark(
    name="winoground",
    title="Winoground",
    licence="Meta's research licence; accept it on the Hugging Face page first",
    source="https://huggingface.co/datasets/facebook/winoground (data/examples.jsonl and data/images.zip)",
    layout=("winoground/data/examples.jsonl", "winoground/data/images.zip (or unpacked: images/*.png)"),
    loader=load,
    expected={"winoground": 400},
    headlines=(
        *(Headline(f"{score} score", score, "winoground") for score in SCORES),
        *(Headline(f"{tag}, {score}", score, "winoground", tag) for tag in TAGS for score in SCORES),
    ),
    reference="Thrush et al., CVPR 2022",
)
