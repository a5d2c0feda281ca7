"""SugarCrepe++: two captions that both fit, one that does not; five subsets.

Image-text task (``accuracy``): both must be closer to the image than the negative. Text-only task
(``text_only``): the two must be closer to each other than either is to the negative.
Reference: Dumpala et al., 2024; github.com/Sri-Harsha/scpp.
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

SIZES = {"replace_obj": 1652, "replace_att": 788, "replace_rel": 1406, "swap_obj": 245, "swap_att": 666}


def load(root: Path) -> dict[str, ChoiceTask]:
    tasks = {}
    folders = [root / name for name in COCO_2017]
    for subset, path in subset_files(root, ["scpp/data", "scpp"], {name: f"{name}.json" for name in SIZES}):
        task = tasks[subset] = ChoiceTask([], expected=SIZES[subset], text_only=True)
        for key, entry in entries(path, ("filename", "caption", "caption2", "negative_caption"), task):
            image = find_image(folders, entry["filename"])
            positives = (entry["caption"], entry["caption2"])
            task.items.append(Choice(key, image, positives, (entry["negative_caption"],)))
    return tasks


BENCHMARK = Benchmark(
    name="sugarcrepe_pp",
    title="SugarCrepe++",
    licence="annotations MIT; COCO images under their own Creative Commons licences",
    source="https://github.com/Sri-Harsha/scpp (data/) and http://images.cocodataset.org/zips/val2017.zip",
    layout=("scpp/data/{replace_obj,...,swap_att}.json", "coco/val2017/*.jpg"),
    loader=load,
    expected=SIZES,
    groups=tuple(SIZES),
    averages=(("overall", "accuracy"), ("text_only", "text_only")),
    pooled=(("item_weighted", "accuracy"),),
    headlines=(
        Headline("image-text task, mean of the 5 subsets", "overall"),
        Headline("text-only task, mean of the 5 subsets", "text_only"),
        *(Headline(f"{name}, image-text", "accuracy", name) for name in SIZES),
        *(Headline(f"{name}, text-only", "text_only", name) for name in SIZES),
    ),
    size="annotations 1.3 MB, COCO val2017 1 GB",
    reference="Dumpala et al., 2024",
)
