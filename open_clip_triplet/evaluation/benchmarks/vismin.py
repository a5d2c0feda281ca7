"""VisMin: two images that differ in one object, attribute, count or relation, and a caption of each; 2,084 pairs.

Reference: Awal et al., NeurIPS 2024; github.com/rabiulcste/vismin (vismin-bench/metric.py).
"""

from __future__ import annotations

from pathlib import Path

from open_clip_triplet.evaluation.benchmarks.base import (
    Benchmark,
    Headline,
    is_caption,
    parquet_image,
    parquet_rows,
)
from open_clip_triplet.evaluation.tasks import Pair, PairTask

CATEGORIES = ("object", "attribute", "counting", "relation")
TEXTS = ("text_0", "text_1")


def load(root: Path) -> dict[str, PairTask]:
    files = [
        path
        for name in ("vismin", "vismin-bench")
        for path in sorted(root.glob(f"{name}/**/*.parquet"))
    ]
    if not files:
        return {}
    task = PairTask([], expected=2084)
    for path in files:
        for number, row in parquet_rows(path, ("id", "category", *TEXTS)):
            captions = (row["text_0"], row["text_1"])
            if not all(map(is_caption, captions)) or not is_caption(row["category"]):
                task.add(None, f"{path.name}/{number}")
                continue
            images = (parquet_image(path, "image_0", number), parquet_image(path, "image_1", number))
            task.items.append(Pair(str(row["id"]), images, captions, (row["category"],)))
    return {"vismin": task}


BENCHMARK = Benchmark(
    name="vismin",
    title="VisMin",
    licence="CC BY 4.0",
    source="https://huggingface.co/datasets/mair-lab/vismin-bench (its Arrow files as Parquet: `datasets` writes "
    'them by load_from_disk(...)["test"].to_parquet("vismin/test.parquet"))',
    layout=("vismin/*.parquet",),
    loader=load,
    expected={"vismin": 2084},
    headlines=tuple(
        Headline(f"{category}, {metric}", metric, "vismin", category)
        for category in CATEGORIES
        for metric in ("text", "image", "group")
    ),
    size="1.5 GB",
    reference="Awal et al., NeurIPS 2024",
)
