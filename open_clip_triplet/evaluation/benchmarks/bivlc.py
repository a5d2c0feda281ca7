"""BiVLC: SugarCrepe's items with an image for the negative caption too; 2,933 items in Parquet.

``text`` is the authors' I2T, ``image`` their T2I. Images are read out of the Parquet files in place.
Reference: Miranda et al., NeurIPS 2024; huggingface.co/datasets/imirandam/BiVLC.
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

IMAGES = ("image", "negative_image")
TEXTS = ("caption", "negative_caption")
TYPES = ("replace", "swap", "add")
SCORES = {"text": "I2T", "image": "T2I", "group": "group"}


def load(root: Path) -> dict[str, PairTask]:
    files = sorted(root.glob("bivlc/**/*.parquet"))
    if not files:
        return {}
    task = PairTask([], expected=2933)
    for path in files:
        for number, row in parquet_rows(path, (*TEXTS, "type")):
            name = f"{path.name}/{number}"
            task.add(_item(row, name, path, number), name)
    return {"bivlc": task}


def _item(row: dict, name: str, path: Path, number: int) -> Pair | None:
    first, second = (row[column] for column in TEXTS)
    if not (is_caption(first) and is_caption(second)):
        return None
    images = (parquet_image(path, IMAGES[0], number), parquet_image(path, IMAGES[1], number))
    return Pair(name, images, (first, second), (row["type"],) if is_caption(row["type"]) else ())


BENCHMARK = Benchmark(
    name="bivlc",
    title="BiVLC",
    licence="MIT; COCO images under their own Creative Commons licences",
    source="https://huggingface.co/datasets/imirandam/BiVLC",
    layout=("bivlc/data/test-*.parquet",),
    loader=load,
    expected={"bivlc": 2933},
    headlines=(
        *(Headline(label, score, "bivlc") for score, label in SCORES.items()),
        *(Headline(f"{kind}, {label}", score, "bivlc", kind) for kind in TYPES for score, label in SCORES.items()),
    ),
    reference="Miranda et al., NeurIPS 2024",
)
