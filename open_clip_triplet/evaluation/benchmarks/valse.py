"""VALSE: a caption and its foil on one linguistic phenomenon; eleven files in seven groups.

Only items that at least two of three annotators held valid are used. Overall is the mean of the seven
groups, a group being the mean of its files.
Reference: Parcalabescu et al., ACL 2022; github.com/Heidelberg-NLP/VALSE.
"""

from __future__ import annotations

from pathlib import Path

from open_clip_triplet.evaluation.benchmarks.base import (
    COCO_2014,
    COCO_2017,
    Benchmark,
    Headline,
    entries,
    find_image,
    subset_files,
)
from open_clip_triplet.evaluation.tasks import Choice, ChoiceTask

GROUPS = (
    "existence",
    "plurals",
    ("counting-hard", "counting-small-quant", "counting-adversarial"),
    "relations",
    ("action-replacement", "actant-swap"),
    ("coreference-standard", "coreference-hard"),
    "foil-it",
)
#: items with at least two caption votes
SIZES = {
    "existence": 505,
    "plurals": 851,
    "counting-hard": 868,
    "counting-small-quant": 900,
    "counting-adversarial": 691,
    "relations": 535,
    "action-replacement": 648,
    "actant-swap": 949,
    "coreference-standard": 708,
    "coreference-hard": 104,
    "foil-it": 943,
}
VOTES = 2

#: source data set named in an item -> folders of its images (the authors', then common ones)
IMAGES = {
    "visual7w": ("valse/data/visual7w/images", "valse/images/visual7w", "visual7w/images", "visual7w"),
    "SWiG": ("valse/data/actions/images_512", "valse/images/swig", "swig/images_512", "swig"),
    "VisDial_v1.0": (
        "valse/data/coref/release_too_many_is_this_in_color/images",
        "valse/data/coref/release_v18/test_images",
        "valse/images/visdial",
        "visdial/VisualDialog_val2018",
        "visdial",
        "coco/train2014",
        "train2014",
        *COCO_2014,
    ),
    "FOIL dataset": ("valse/images/coco", *COCO_2014),
    "coco2017": ("valse/data/plurals/test_images", "valse/images/coco", *COCO_2017),
    "coco_2017": ("valse/data/relations/test_images", "valse/images/coco", *COCO_2017),
}

#: images of a data set that the item does not name
OTHERS = ("valse/images",)


def load(root: Path) -> dict[str, ChoiceTask]:
    tasks = {}
    for subset, path in subset_files(root, ["valse/data", "valse"], {name: f"{name}.json" for name in SIZES}):
        task = tasks[subset] = ChoiceTask([], expected=SIZES[subset])
        for key, entry in entries(path, ("image_file", "caption", "foil"), task):
            votes = entry.get("mturk")
            votes = votes.get("caption") if isinstance(votes, dict) else None
            if not isinstance(votes, (int, float)) or votes < VOTES:
                continue  # not part of the benchmark, so not counted as dropped
            source = entry.get("dataset")
            places = IMAGES.get(source, OTHERS) if isinstance(source, str) else OTHERS
            folders = [root / name for name in places]
            image = find_image(folders, entry["image_file"])
            task.items.append(Choice(key, image, (entry["caption"],), (entry["foil"],)))
    return tasks


BENCHMARK = Benchmark(
    name="valse",
    title="VALSE",
    licence="annotations MIT; images from COCO, Visual7W, SWiG, VisDial under their own terms",
    source="https://github.com/Heidelberg-NLP/VALSE (data/); each item names its image's data set",
    layout=(
        "valse/{existence,...,foil-it}.json",
        "visual7w/images/*.jpg",
        "swig/images_512/*.jpg",
        "visdial/VisualDialog_val2018/*.jpg",
        "coco/{train2014,val2014,val2017}/*.jpg",
    ),
    loader=load,
    expected=SIZES,
    groups=GROUPS,
    flat_averages=(("mean_of_files", "accuracy"),),
    headlines=(
        Headline("mean of the 7 groups", "overall"),
        Headline("mean of the 11 files", "mean_of_files"),
        *(Headline(name, "accuracy", name) for name in SIZES),
    ),
    size="annotations 6 MB; images of five data sets",
    reference="Parcalabescu et al., ACL 2022",
)
