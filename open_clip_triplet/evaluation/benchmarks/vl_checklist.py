"""VL-CheckList: an image, a caption and one with an object, attribute or relation replaced; 13 types.

As in the authors' sample configuration and in later papers, the first 1,000 items of each file are used, and
of their captions the first. A type is the mean of its data sets, a data set the mean of its files; ``overall``
is the mean of the 13 types.
Reference: Zhao et al., EMNLP demos 2022; github.com/om-ai-lab/VL-CheckList (corpus.json, task itc).
"""

from __future__ import annotations

import os
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
from open_clip_triplet.evaluation.tasks import Choice, ChoiceTask

#: items used of a file: MAX_NUM of 2,000 halved, as the authors do for this task
FIRST = 1000
_SWIG = ("agent", "destination", "item", "tool")


def _object_files(kind: str, value: str) -> dict[str, str]:
    folder = f"Object/{kind.capitalize()}"
    files = {f"vg_{role}": f"{folder}/vg_{kind}/vg_{role}_{value}.json" for role in ("obj", "subj")}
    for role in _SWIG:
        files[f"swig_{role}"] = f"{folder}/swig_{kind}/swig_{role}/swig_{role}_{value}.json"
    return files | {"hake": f"{folder}/hake_{kind}/hake_obj_{value}.json"}


#: type -> data set (and role in it) -> file of annotations
TYPES = {
    **{f"object_location_{v}": _object_files("location", v) for v in ("center", "margin", "mid")},
    **{f"object_size_{v}": _object_files("size", v) for v in ("large", "medium", "small")},
    **{
        f"attribute_{name}": {data: f"Attribute/{data}/{name}.json" for data in ("vg", "vaw")}
        for name in ("action", "color", "material", "size", "state")
    },
    "relation_action": {
        "vg": "Relation/vg/action.json",
        "swig": "Relation/swig_action.json",
        "hake": "Relation/hake_action.json",
    },
    "relation_spatial": {"vg": "Relation/vg/spatial.json"},
}
#: files of fewer than 1,000 items
SMALL = {
    "attribute_state_vg": 941,
    "object_location_margin_swig_agent": 260,
    "object_location_margin_swig_destination": 45,
    "object_location_margin_swig_item": 88,
    "object_location_margin_swig_tool": 121,
    "object_location_mid_swig_destination": 530,
    "object_size_medium_swig_agent": 442,
    "object_size_medium_swig_destination": 109,
    "object_size_medium_swig_item": 742,
    "object_size_small_swig_agent": 48,
    "object_size_small_swig_destination": 9,
    "object_size_small_swig_item": 154,
    "object_size_small_swig_tool": 308,
}
SIZES = {
    f"{kind}_{name}": SMALL.get(f"{kind}_{name}", FIRST) for kind, files in TYPES.items() for name in files
}


def _tree(kind: str, files: dict[str, str]) -> tuple:
    """A type as a tree: data sets, and below each its files."""
    by_data: dict[str, list[str]] = {}
    for name in files:
        by_data.setdefault(name.partition("_")[0], []).append(f"{kind}_{name}")
    return tuple(names[0] if len(names) == 1 else tuple(names) for names in by_data.values())


def load(root: Path) -> dict[str, ChoiceTask]:
    folder = first_folder(root, ["vl_checklist/data", "VL-CheckList/data"])
    tasks = {}
    if folder is None:
        return {}
    for kind, files in TYPES.items():
        for name, file in files.items():
            if (folder / file).is_file():
                images = _image_folders(root, name.partition("_")[0])
                tasks[f"{kind}_{name}"] = _task(folder / file, images, SIZES[f"{kind}_{name}"])
    return tasks


def _image_folders(root: Path, data: str) -> list[Path]:
    """Folders of a data set's images; VAW's are Visual Genome's."""
    name = {"vaw": "vg"}.get(data, data)
    more = {"vg": ["visual_genome"], "swig": ["swig/images_512"]}.get(name, [])
    return [root / place for place in (f"vl_checklist/{name}", name, *more)]


def _task(path: Path, folders: list[Path], size: int) -> ChoiceTask:
    task = ChoiceTask([], expected=size)
    for number, entry in enumerate(read_list(path)[:FIRST]):
        task.add(_item(entry, str(number), folders), f"{path.name} {number}")
    return task


def _item(entry: Any, name: str, folders: list[Path]) -> Choice | None:
    """``[image path, {"POS": [captions], "NEG": [captions]}]``"""
    if not (
        isinstance(entry, list) and len(entry) == 2 and is_caption(entry[0]) and isinstance(entry[1], dict)
    ):
        return None
    positives, negatives = (entry[1].get(side) for side in ("POS", "NEG"))
    if not (isinstance(positives, list) and positives and is_caption(positives[0])):
        return None
    if not (isinstance(negatives, list) and negatives and is_caption(negatives[0])):
        return None
    return Choice(name, _image(folders, entry[0]), (positives[0],), (negatives[0],))


def _image(folders: list[Path], name: str) -> ImageRef:
    """An image at its path below the first folder that has it."""
    paths = [image_below(folder, name) for folder in folders]
    return ImageRef(str(next(filter(os.path.isfile, paths), paths[0])))


BENCHMARK = Benchmark(
    name="vl_checklist",
    title="VL-CheckList",
    licence="annotations: none stated by the authors; images of Visual Genome (CC BY 4.0), SWiG and HAKE under theirs",
    source="https://github.com/om-ai-lab/VL-CheckList (data/; its DATASETS.md lays out the images)",
    layout=(
        "vl_checklist/data/{Object,Attribute,Relation}/...",
        "vl_checklist/vg/{VG_100K,VG_100K_2}/*.jpg",
        "vl_checklist/swig/*.jpg",
        "vl_checklist/hake/...",
    ),
    loader=load,
    expected=SIZES,
    groups=tuple(_tree(kind, files) for kind, files in TYPES.items()),
    headlines=(Headline("mean of 13 types", "overall"),),
    size="annotations 0.2 GB; Visual Genome 15 GB, SWiG 1 GB, HAKE",
    reference="Zhao et al., EMNLP 2022",
)
