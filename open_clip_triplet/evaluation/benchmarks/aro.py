"""ARO: VG-Relation and VG-Attribution. COCO-Order and Flickr30k-Order shuffle at random, so are left out.

The image is cropped to the item's box. ``macro`` is the number that the authors report: the mean over
relations, without those that read the same both ways (``aro_symmetric_relations.txt``, from the authors'
notebook), and over pairs of attributes that have at least 25 items. ``accuracy`` is over all items.
Reference: Yuksekgonul et al., ICLR 2023; github.com/mertyg/vision-language-models-are-bows.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from open_clip_triplet.evaluation.benchmarks.base import (
    Benchmark,
    Headline,
    entries,
    find_image,
    subset_files,
)
from open_clip_triplet.evaluation.images import ImageRef
from open_clip_triplet.evaluation.tasks import Choice, ChoiceTask

FILES = {"vg_relation": "visual_genome_relation.json", "vg_attribution": "visual_genome_attribution.json"}
SIZES = {"vg_relation": 23937, "vg_attribution": 28748}
BOX = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")
#: pixels; no image is larger, so a number beyond is a damaged file
FARTHEST = 100_000


def load(root: Path) -> dict[str, ChoiceTask]:
    tasks = {}
    for subset, path in subset_files(root, ["aro"], FILES):
        task = tasks[subset] = _task(subset)
        for key, entry in entries(path, ("image_path", "true_caption", "false_caption"), task):
            box, group = _box(entry), _group(subset, entry)
            if box is None or group is None:
                task.leave_out("annotation incomplete", f"{path.name} {key} has no {'group' if box else 'box'}")
                continue
            image = ImageRef(find_image([path.parent / "images"], entry["image_path"]).path, crop=box)
            task.items.append(
                Choice(key, image, (entry["true_caption"],), (entry["false_caption"],), (group,))
            )
    return tasks


def _task(subset: str) -> ChoiceTask:
    if subset == "vg_attribution":
        return ChoiceTask([], expected=SIZES[subset], macro=True, macro_least=25)
    text = files(__package__).joinpath("aro_symmetric_relations.txt").read_text(encoding="utf-8")
    return ChoiceTask([], expected=SIZES[subset], macro=True, macro_without=frozenset(text.splitlines()))


def _box(entry: dict) -> tuple[int, int, int, int] | None:
    """(left, top, right, bottom), None where the item has no such box."""
    given = [entry.get(name) for name in BOX]
    numbers = [int(x) for x in given if isinstance(x, (int, float)) and abs(x) < FARTHEST]  # nor NaN
    if len(numbers) < len(BOX):
        return None
    x, y, width, height = numbers
    return (x, y, x + width, y + height) if width >= 1 and height >= 1 else None


def _group(subset: str, entry: dict) -> str | None:
    """The relation, or the two attributes; None where the item has none."""
    group: Any = entry.get("relation_name")
    if subset == "vg_attribution":
        pair = entry.get("attributes")
        whole = isinstance(pair, list) and len(pair) >= 2 and all(isinstance(x, str) for x in pair)
        group = "_".join(pair[:2]) if whole and isinstance(pair, list) else None
    return group if isinstance(group, str) else None


BENCHMARK = Benchmark(
    name="aro",
    title="ARO",
    licence="annotations MIT; Visual Genome images CC BY 4.0",
    source="https://github.com/mertyg/vision-language-models-are-bows (its loaders name the files)",
    layout=tuple(f"aro/{file}" for file in FILES.values()) + ("aro/images/*.jpg",),
    loader=load,
    expected=SIZES,
    headlines=(
        Headline("VG-Relation, mean over relations (the authors')", "macro", "vg_relation"),
        Headline("VG-Relation, over items", "accuracy", "vg_relation"),
        Headline("VG-Attribution, mean over attribute pairs (the authors')", "macro", "vg_attribution"),
        Headline("VG-Attribution, over items", "accuracy", "vg_attribution"),
    ),
    size="1 GB",
    reference="Yuksekgonul et al., ICLR 2023",
)
