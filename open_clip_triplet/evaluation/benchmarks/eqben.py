"""EqBen: two images that differ little and a caption of each; from videos, a 3D engine and Stable Diffusion.

The annotation is the one of 2023-09, a list of pairs whose images' first folder names the subset. YouCook2's
images are stored as numpy arrays and left out.
Reference: Wang et al., ICCV 2023; github.com/Wangt-CN/EqBen (evaluate_eqben_locally.py).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from open_clip_triplet.evaluation.benchmarks.base import (
    Benchmark,
    Headline,
    first_file,
    image_below,
    is_caption,
    read_list,
)
from open_clip_triplet.evaluation.images import ImageRef
from open_clip_triplet.evaluation.tasks import Pair, PairTask

SIZES = {
    "ag": 195872,
    "gebc": 1814,
    "kubric_loc": 2000,
    "kubric_attr": 2000,
    "kubric_cnt": 2000,
    "sd": 1513,
}
LEFT_OUT = "youcook2"
SCORES = ("text", "image", "group")


def load(root: Path) -> dict[str, PairTask]:
    path = first_file(root, ["eqben/all_select.json", "eqben/ann/all_select.json"])
    if path is None:
        return {}
    tasks = {subset: PairTask([], expected=size) for subset, size in SIZES.items()}
    folder = root / "eqben" / "images"
    for number, entry in enumerate(read_list(path)):
        subset = _subset(entry)
        if subset == LEFT_OUT:
            continue
        item = _item(entry, str(number), folder) if subset in tasks else None
        tasks[subset if subset in tasks else "sd"].add(item, f"{path.name} {number}")
    return tasks


def _subset(entry: Any) -> str:
    image = entry.get("image0") if isinstance(entry, dict) else None
    return image.partition("/")[0].removeprefix("eqben").strip("_") if isinstance(image, str) else ""


def _item(entry: dict, name: str, folder: Path) -> Pair | None:
    first, second = (entry.get(f"image{side}") for side in (0, 1))
    captions = (entry.get(f"caption{side}") for side in (0, 1))
    own, other = (x[0] if isinstance(x, list) and x else x for x in captions)  # of several the first, as the authors do
    if not (is_caption(first) and is_caption(second) and is_caption(own) and is_caption(other)):
        return None
    return Pair(name, (_image(folder, first), _image(folder, second)), (own, other))


def _image(folder: Path, name: str) -> ImageRef:
    """An image at its path; the light version's, where the PNG is not there."""
    path = image_below(folder, name)
    light = path.with_suffix(".jpg")
    return ImageRef(str(path if os.path.isfile(path) or not os.path.isfile(light) else light))


BENCHMARK = Benchmark(
    name="eqben",
    title="EqBen",
    licence="Apache-2.0; frames of Action Genome and GEBC videos under their own terms",
    source="https://github.com/Wangt-CN/EqBen (its README links the light images and the whole annotation)",
    layout=("eqben/all_select.json", "eqben/images/{eqbenag,...,eqbensd}/..."),
    loader=load,
    expected=SIZES,
    groups=tuple(SIZES),
    averages=tuple((metric, metric) for metric in SCORES),
    headlines=tuple(Headline(f"{subset}, {metric}", metric, subset) for subset in SIZES for metric in SCORES),
    size="light version 23 GB",
    reference="Wang et al., ICCV 2023",
)
