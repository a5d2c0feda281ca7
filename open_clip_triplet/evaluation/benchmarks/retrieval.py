"""Image-text retrieval: MSCOCO 5k and Flickr30k 1k on the Karpathy splits; Flickr8k beside them.

Layouts are clip_benchmark's. Where only other captions or a part of the images are there, the run is
partial and says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from open_clip_triplet.errors import DataError
from open_clip_triplet.evaluation.benchmarks.base import (
    COCO_2014,
    COCO_2017,
    Benchmark,
    Headline,
    find_image,
    first_file,
    first_folder,
    is_caption,
    read_json,
    read_text,
    shard_samples,
)
from open_clip_triplet.evaluation.images import ImageRef
from open_clip_triplet.evaluation.tasks import Captioned, RetrievalTask
from open_clip_triplet.shards import read_meta

SIZES = {"mscoco": 5000, "flickr30k": 1000}


def load(root: Path) -> dict[str, RetrievalTask]:
    found = {
        "mscoco": _coco(root),
        "flickr30k": _flickr(root, "flickr30k"),
        "flickr8k": _flickr(root, "flickr8k"),
    }
    return {name: task for name, task in found.items() if task is not None}


def _coco(root: Path) -> RetrievalTask | None:
    path = first_file(root, [f"{d}/coco_test_karpathy.json" for d in ("mscoco_captions", "coco", "")])
    note = ""
    if path is None:
        others = [
            *root.glob("coco/captions_val2017*.json"),
            *root.glob("coco/annotations/captions_val2017*.json"),
        ]
        if not others:
            return None
        path, note = sorted(others)[0], "not the Karpathy split"
    folders = [root / name for name in (*COCO_2014, *COCO_2017)]
    folders = [folder for folder in folders if folder.is_dir()] or [path.parent]
    task = RetrievalTask([], expected=5000, note=note)
    images, captions = _coco_captions(path, task)
    for image_id, name in images.items():
        if image_id in captions:
            task.items.append(Captioned(name, find_image(folders, name), tuple(captions[image_id])))
        else:
            task.leave_out("image without captions", f"{path.name} {name}")
    return task


def _coco_captions(path: Path, task: RetrievalTask) -> tuple[dict[Any, str], dict[Any, list[str]]]:
    """(image id -> file name, image id -> captions) of a file in COCO's captions format."""
    content = read_json(path)
    if not isinstance(content, dict) or not all(
        isinstance(content.get(part), list) for part in ("images", "annotations")
    ):
        raise DataError(f"{path}: expected COCO's captions format, an object with lists images and annotations")
    images: dict[Any, str] = {}
    for place, image in enumerate(content["images"]):
        if not isinstance(image, dict) or not is_caption(image.get("file_name")) or not _is_id(image.get("id")):
            task.add(None, f"{path.name} images[{place}]")
        else:
            images[image["id"]] = image["file_name"]
    captions: dict[Any, list[str]] = {}
    bad = 0
    for place, entry in enumerate(content["annotations"]):
        if not isinstance(entry, dict) or not is_caption(entry.get("caption")) or not _is_id(entry.get("image_id")):
            task.add(None, f"{path.name} annotations[{place}]")
            bad += 1
        else:
            captions.setdefault(entry["image_id"], []).append(entry["caption"])
    _note_unread(task, bad)
    return images, captions


def _note_unread(task: RetrievalTask, captions: int) -> None:
    """Captions that cannot be read make a task partial, whether or not all images are there: recall would change."""
    if captions:
        task.note = "; ".join(filter(None, (task.note, f"{captions} captions cannot be read")))


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _flickr(root: Path, name: str) -> RetrievalTask | None:
    path = first_file(root, [f"{name}/{name}_test_karpathy.txt"])
    if path is not None:
        return _flickr_text(root, name, path)
    shards = sorted((root / name).glob("val-*.tar")) if name == "flickr8k" else []
    return _shards(shards) if shards else None


def _flickr_text(root: Path, name: str, path: Path) -> RetrievalTask:
    """clip_benchmark's file: a heading, then ``<image>.jpg,<caption>`` lines."""
    captions: dict[str, list[str]] = {}
    task = RetrievalTask([], expected=1000)
    for line in read_text(path).split("\n")[1:]:
        image, comma, caption = line.strip().partition(".jpg,")
        if comma and is_caption(caption):
            captions.setdefault(f"{image}.jpg", []).append(caption)
        elif line.strip():
            task.add(None, f"{path.name}: {line[:60]}")
    _note_unread(task, task.dropped.total())
    folder = first_folder(root, [f"{name}/Images", f"{name}/images"]) or root / name
    task.items = [Captioned(i, find_image([folder, root / name], i), tuple(c)) for i, c in captions.items()]
    return task


def _shards(shards: list[Path]) -> RetrievalTask:
    """webdataset shards whose json keeps all ``captions`` of an image."""
    task = RetrievalTask([], expected=1000, note=f"{shards[0].name} ff., not the Karpathy test split")
    for shard, sample in shard_samples(shards, task):
        image = next((sample[s] for s in ("jpg", "jpeg", "png", "webp") if s in sample), None)
        captions = _captions(sample)
        if image is None or not captions:
            task.leave_out("sample without image or captions", f"{shard.name} {sample['__key__']}")
        else:
            task.items.append(Captioned(sample["__key__"], image, captions))
    return task


def _captions(sample: dict[str, ImageRef]) -> tuple[str, ...]:
    """All captions of the json, else the one of the txt; () where neither can be read."""
    try:
        meta = read_meta({"meta": sample["json"].read()}) if "json" in sample else {}
        captions = meta.get("captions")
        if isinstance(captions, list) and captions and all(map(is_caption, captions)):
            return tuple(captions)
        caption = sample["txt"].read().decode("utf-8").strip() if "txt" in sample else ""
        return (caption,) if caption else ()
    except UnicodeDecodeError:
        return ()


BENCHMARK = Benchmark(
    name="retrieval",
    title="Image-text retrieval",
    licence="COCO images: Creative Commons; Flickr images: research use, request them from their authors",
    source="images: cocodataset.org (val2014), shannon.cs.illinois.edu/DenotationGraph (Flickr30k); "
    "captions: https://github.com/mehdidc/retrieval_annotations/releases/tag/1.0.0",
    layout=(
        "mscoco_captions/coco_test_karpathy.json",
        "mscoco_captions/val2014/*.jpg",
        "flickr30k/flickr30k_test_karpathy.txt",
        "flickr30k/*.jpg",
        "flickr8k/flickr8k_test_karpathy.txt, flickr8k/*.jpg (or flickr8k/val-*.tar)",
    ),
    loader=load,
    expected=SIZES,
    headlines=tuple(
        Headline(f"{name}, {way} R@{k}", f"{'t2i' if way == 'image' else 'i2t'}_r{k}", name)
        for name in SIZES
        for way in ("image", "text")
        for k in (1, 5, 10)
    ),
    size="COCO val2014 6 GB, Flickr30k 4 GB",
    reference="Karpathy and Fei-Fei, CVPR 2015",
)
