"""SugarCrepe: one image, its caption and a hard negative caption; seven subsets.

Reference: Hsieh et al., NeurIPS 2023; github.com/RAIVNLab/sugar-crepe.
"""

from __future__ import annotations

from pathlib import Path

from open_clip_triplet.evaluation.benchmarks.base import (
    COCO_2017,
    Benchmark,
    Headline,
    entries,
    find_image,
    subset_files,
)
from open_clip_triplet.evaluation.tasks import Choice, ChoiceTask

SIZES = {
    "replace_obj": 1652,
    "replace_att": 788,
    "replace_rel": 1406,
    "swap_obj": 245,
    "swap_att": 666,
    "add_obj": 2062,
    "add_att": 692,
}
FOLDERS = ("sugar-crepe/data", "sugar-crepe", "sugar_crepe", "")


def load(root: Path) -> dict[str, ChoiceTask]:
    tasks = {}
    images = [folder for name in COCO_2017 if (folder := root / name).is_dir()]
    for subset, path in subset_files(root, FOLDERS, {name: f"{name}.json" for name in SIZES}):
        task = tasks[subset] = ChoiceTask([], expected=SIZES[subset])
        for key, entry in entries(path, ("filename", "caption", "negative_caption"), task):
            image = find_image([*images, path.parent / "val2017"], entry["filename"])
            task.items.append(Choice(key, image, (entry["caption"],), (entry["negative_caption"],)))
    return tasks


BENCHMARK = Benchmark(
    name="sugarcrepe",
    title="SugarCrepe",
    licence="annotations MIT; COCO images under their own Creative Commons licences",
    source="https://github.com/RAIVNLab/sugar-crepe (data/) and http://images.cocodataset.org/zips/val2017.zip",
    layout=("sugar-crepe/{add_att,...,swap_obj}.json", "coco/val2017/*.jpg"),
    loader=load,
    expected=SIZES,
    groups=tuple(SIZES),
    pooled=(("item_weighted", "accuracy"),),
    headlines=(
        Headline("mean of the 7 subsets", "overall"),
        Headline("weighted by items", "item_weighted"),
        *(Headline(name, "accuracy", name) for name in SIZES),
    ),
    size="annotations 1.7 MB, COCO val2017 1 GB",
    reference="Hsieh et al., NeurIPS 2023",
)
