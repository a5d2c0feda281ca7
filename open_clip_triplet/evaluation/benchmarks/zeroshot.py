"""Zero-shot classification on the paper's 18 sets, read as clip_benchmark's webdataset exports.

Class names and templates are clip_benchmark's: those beside the export, else those in its package.
A plain folder per class (``cifar10/<class>/*.jpg``) is read too.
Reference: github.com/LAION-AI/CLIP_benchmark; the exports are at huggingface.co/clip-benchmark.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from open_clip_triplet.errors import DataError
from open_clip_triplet.evaluation.benchmarks.base import Benchmark, Headline, read_text, shard_samples
from open_clip_triplet.evaluation.images import ImageRef
from open_clip_triplet.evaluation.tasks import ClassifyTask, Labelled

#: set -> (folder of its webdataset export, test images), in Table 12's order
SETS = {
    "fgvc_aircraft": ("wds_fgvc_aircraft", 3333),
    "imagenet1k": ("wds_imagenet1k", 50000),
    "caltech101": ("wds_vtab-caltech101", 6085),
    "cifar100": ("wds_vtab-cifar100", 10000),
    "clevr_closest_object_distance": ("wds_vtab-clevr_closest_object_distance", 15000),
    "clevr_count_all": ("wds_vtab-clevr_count_all", 15000),
    "dmlab": ("wds_vtab-dmlab", 22735),
    "dsprites_label_orientation": ("wds_vtab-dsprites_label_orientation", 73728),
    "dsprites_label_x_position": ("wds_vtab-dsprites_label_x_position", 73728),
    "dtd": ("wds_vtab-dtd", 1880),
    "eurosat": ("wds_vtab-eurosat", 5400),
    "flowers": ("wds_vtab-flowers", 6149),
    "kitti_closest_vehicle_distance": ("wds_vtab-kitti_closest_vehicle_distance", 711),
    "pcam": ("wds_vtab-pcam", 32768),
    "pets": ("wds_vtab-pets", 3669),
    "smallnorb_label_azimuth": ("wds_vtab-smallnorb_label_azimuth", 12150),
    "smallnorb_label_elevation": ("wds_vtab-smallnorb_label_elevation", 12150),
    "svhn": ("wds_vtab-svhn", 26032),
}
BEYOND = {"cifar10": ("wds_vtab-cifar10", 10000)}
#: sets whose class names clip_benchmark keeps under another name: VTAB's Caltech101 has another order
CLASSES = {"caltech101": "caltech101_vtab"}
IMAGES = ("webp", "png", "jpg", "jpeg")


def load(root: Path) -> dict[str, ClassifyTask]:
    tasks = {}
    for name, (export, size) in {**SETS, **BEYOND}.items():
        for folder in (root / "zeroshot" / export, root / export, root / name):
            if (folder / "test" / "nshards.txt").is_file():
                tasks[name] = _export(folder, name, size)
            elif folder.name == name and folder.is_dir():
                tasks[name] = _folders(folder, name, size)
            if name in tasks:
                break
    return tasks


def _export(folder: Path, name: str, size: int) -> ClassifyTask:
    """A clip_benchmark webdataset export: numbered tars, classnames and templates beside them."""
    count = read_text(folder / "test" / "nshards.txt").strip()
    if not re.fullmatch(r"[0-9]{1,5}", count):
        raise DataError(f"{folder}/test/nshards.txt: expected a number of shards, found {count[:40]!r}")
    classes, templates = _words(folder, name)
    task = ClassifyTask([], size, classes=classes, templates=templates)
    shards = [folder / "test" / f"{i}.tar" for i in range(int(count))]
    for shard in shards:
        if not shard.is_file():
            task.leave_out("shard missing", str(shard))
    for shard, sample in shard_samples((s for s in shards if s.is_file()), task):
        _append(task, sample, shard)
    return task


def _append(task: ClassifyTask, sample: dict, shard: Path) -> None:
    image = next((sample[suffix] for suffix in IMAGES if suffix in sample), None)
    label = sample["cls"].read().decode("ascii", "replace").strip() if "cls" in sample else ""
    where = f"{shard.name}/{sample['__key__']}"
    if image is None or not label.isdigit() or int(label) >= len(task.classes):
        task.leave_out("sample without image or valid label", where)
    else:
        task.items.append(Labelled(where, image, int(label)))


def _words(folder: Path, name: str) -> tuple[list[str], list[str]]:
    """Class names and templates: the export's own files, as clip_benchmark reads them."""

    def lines(file: str) -> list[str] | None:
        path = folder / file
        return (
            [line.strip() for line in read_text(path).rstrip().splitlines()]
            if path.is_file()
            else None
        )

    classes = lines("classnames.txt") or packaged("en_classnames.json").get(CLASSES.get(name, name))
    if not classes or not all(classes):
        raise DataError(f"{folder}: no classnames.txt, or an empty name in it; download the export whole")
    return classes, lines("zeroshot_classification_templates.txt") or _templates(name)


def _templates(name: str) -> list[str]:
    templates = packaged("en_zeroshot_classification_templates.json")
    return templates.get(name) or templates["imagenet1k"]


def packaged(file: str) -> dict:
    """One of clip_benchmark's word lists, read without importing it (that takes seconds)."""
    import importlib.util

    spec = importlib.util.find_spec("clip_benchmark")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            "zero-shot classification takes its words from clip_benchmark; "
            "install open_clip_triplet with its extra `eval`"
        )
    path = Path(spec.submodule_search_locations[0]) / "datasets" / file
    return json.loads(path.read_text(encoding="utf-8"))


def _folders(folder: Path, name: str, size: int) -> ClassifyTask:
    """One folder per class, named after it."""
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    task = ClassifyTask([], size, note="a folder per class", classes=classes, templates=_templates(name))
    for label, class_name in enumerate(classes):
        for path in sorted((folder / class_name).iterdir()):
            if path.suffix.lower().lstrip(".") in IMAGES:
                task.items.append(Labelled(f"{class_name}/{path.name}", ImageRef(str(path)), label))
    return task


BENCHMARK = Benchmark(
    name="zeroshot",
    title="Zero-shot classification",
    licence="each set has its own; see its page",
    source="https://huggingface.co/clip-benchmark (wds_* repositories, test split), or "
    "clip_benchmark_export_wds on a clip_benchmark data set",
    layout=(
        "zeroshot/wds_imagenet1k/test/{nshards.txt,0.tar,...}",
        "zeroshot/wds_imagenet1k/classnames.txt",
        "zeroshot/wds_vtab-caltech101/... (18 sets)",
        "cifar10/<class>/*.jpg",
    ),
    loader=load,
    expected={name: size for name, (_, size) in SETS.items()},
    groups=tuple(SETS),
    averages=(("overall", "top1"), ("overall_top5", "top5")),
    headlines=(
        Headline("mean top-1 of the 18 sets", "overall"),
        Headline("mean top-5 of the sets that have five classes", "overall_top5"),
        Headline("ImageNet top-1", "top1", "imagenet1k"),
        Headline("ImageNet top-5", "top5", "imagenet1k"),
    ),
    reference="Zhai et al., 2019 (VTAB)",
)
