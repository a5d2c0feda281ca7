"""ARO: VG-Relation and VG-Attribution. COCO-Order and Flickr30k-Order shuffle at random, so are left out.

The image is cropped to the item's box. The authors report the mean over relations (without the
symmetric ones) and over attribute pairs with at least 25 items; here ``accuracy`` is over all items and
``macro`` the mean over all relations or attribute pairs.
Reference: Yuksekgonul et al., ICLR 2023; github.com/mertyg/vision-language-models-are-bows.
"""

from __future__ import annotations

from pathlib import Path

from open_clip_triplet.evaluation.benchmarks.base import Benchmark, entries, find_image, first_file
from open_clip_triplet.evaluation.images import ImageRef
from open_clip_triplet.evaluation.tasks import Choice, ChoiceTask

FILES = {"vg_relation": "visual_genome_relation.json", "vg_attribution": "visual_genome_attribution.json"}
SIZES = {"vg_relation": 23937, "vg_attribution": 28748}
BOX = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")


def load(root: Path) -> dict[str, ChoiceTask]:
    tasks = {}
    for subset, file in FILES.items():
        path = first_file(root, [f"aro/{file}"])
        if path is None:
            continue
        task = tasks[subset] = ChoiceTask([], expected=SIZES[subset])
        for key, entry in entries(path, ("image_path", "true_caption", "false_caption"), task):
            box = [entry.get(name) for name in BOX]
            if not all(isinstance(value, (int, float)) for value in box) or box[2] < 1 or box[3] < 1:
                task.leave_out("annotation incomplete", f"{file} {key} has no box")
                continue
            x, y, width, height = map(int, box)
            whole = find_image([path.parent / "images"], entry["image_path"])
            image = ImageRef(whole.path, crop=(x, y, x + width, y + height))
            task.items.append(
                Choice(key, image, (entry["true_caption"],), (entry["false_caption"],), _group(entry))
            )
    if not tasks:
        raise BENCHMARK.missing(root)
    return tasks


def _group(entry: dict) -> str:
    attributes = entry.get("attributes")
    return str(entry.get("relation_name") or ("_".join(map(str, attributes)) if attributes else "?"))


BENCHMARK = Benchmark(
    name="aro",
    title="ARO",
    licence="annotations MIT; Visual Genome images CC BY 4.0",
    source="https://github.com/mertyg/vision-language-models-are-bows (its loaders name the files)",
    layout=tuple(f"aro/{file}" for file in FILES.values()) + ("aro/images/*.jpg",),
    load=load,
    expected=SIZES,
    reference="Yuksekgonul et al., ICLR 2023",
)
