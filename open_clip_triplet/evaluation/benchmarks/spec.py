"""SPEC: sizes, positions, existence and counts; an image picks its caption out of a set that differs in one
concept (``i2t``), and a caption its image (``t2i``); six subsets, each both ways.

Reference: Peng et al., CVPR 2024; github.com/wjpoom/SPEC (spec/dataset.py, spec/models/clip_wrapper.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from open_clip_triplet.evaluation.benchmarks.base import (
    Benchmark,
    Headline,
    first_folder,
    image_below,
    is_caption,
    read_list,
)
from open_clip_triplet.evaluation.images import ImageRef
from open_clip_triplet.evaluation.tasks import Choice, ChoiceTask, ImageChoice, ImageChoiceTask, Task

#: items each way: the counts that the accuracies in the authors' notebook are whole numbers of
COUNTS = {
    "absolute_size": 1500,
    "relative_size": 1500,
    "absolute_spatial": 4500,
    "relative_spatial": 2000,
    "existence": 1000,
    "count": 4500,
}
FILES = {"i2t": "image2text.json", "t2i": "text2image.json"}
SIZES = {f"{name}_{way}": count for way in FILES for name, count in COUNTS.items()}


def load(root: Path) -> dict[str, Task]:
    folder = first_folder(root, ["spec/data", "spec"])
    tasks: dict[str, Task] = {}
    if folder is None:
        return {}
    for name in COUNTS:
        for way, file in FILES.items():
            path = folder / name / file
            if path.is_file():
                tasks[f"{name}_{way}"] = _task(path, way, SIZES[f"{name}_{way}"])
    return tasks


def _task(path: Path, way: str, size: int) -> Task:
    task: Task = ChoiceTask([], expected=size) if way == "i2t" else ImageChoiceTask([], expected=size)
    for number, entry in enumerate(read_list(path)):
        task.add(_item(entry, str(number), path.parent, way), f"{path.parent.name}/{path.name} {number}")
    return task


def _item(entry: Any, name: str, folder: Path, way: str) -> Choice | ImageChoice | None:
    """``{"query": image or caption, "keys": the candidates, "label": place of the right one}``"""
    if not isinstance(entry, dict):
        return None
    query, keys, label = (entry.get(field) for field in ("query", "keys", "label"))
    if not is_caption(query) or not isinstance(keys, list) or len(keys) < 2 or not all(map(is_caption, keys)):
        return None
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < len(keys):
        return None
    others = keys[:label] + keys[label + 1 :]
    if way == "i2t":
        return Choice(name, ImageRef(str(image_below(folder, query))), (keys[label],), tuple(others))
    return ImageChoice(
        name, query, tuple(ImageRef(str(image_below(folder, key))) for key in (keys[label], *others))
    )


BENCHMARK = Benchmark(
    name="spec",
    title="SPEC",
    licence="none stated in its repository; images made by Stable Diffusion",
    source="https://huggingface.co/datasets/wjpoom/SPEC (data.zip)",
    layout=("spec/{absolute_size,...,count}/{image2text,text2image}.json", "spec/*/*/*.png"),
    loader=load,
    expected=SIZES,
    groups=(tuple(f"{name}_i2t" for name in COUNTS), tuple(f"{name}_t2i" for name in COUNTS)),
    headlines=tuple(Headline(name.replace("_", " "), "accuracy", name) for name in SIZES),
    reference="Peng et al., CVPR 2024",
)
