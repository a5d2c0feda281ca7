"""ColorSwap: two images, two captions of the same words with their colours exchanged; 300 items of the test split.

Reference: Burapacheep et al., ACL Findings 2024; github.com/Top34051/colorswap.
"""

from __future__ import annotations

from pathlib import Path

from open_clip_triplet.evaluation.benchmarks.base import (
    Benchmark,
    Headline,
    entries,
    first_file,
    image_or_zipped,
)
from open_clip_triplet.evaluation.tasks import Pair, PairTask

FIELDS = ("image_1", "image_2", "caption_1", "caption_2")


def load(root: Path) -> dict[str, PairTask]:
    path = first_file(root, ["colorswap/data/test.json", "colorswap/test.json"])
    if path is None:
        return {}
    task = PairTask([], expected=300)
    for key, entry in entries(path, FIELDS, task):
        first, second = (image_or_zipped(path.parent, Path(entry[field]).name) for field in FIELDS[:2])
        captions = (entry["caption_1"], entry["caption_2"])
        source = entry.get("caption_source")
        groups = (source,) if isinstance(source, str) and source else ()
        task.items.append(Pair(str(entry.get("id", key)), (first, second), captions, groups))
    return {"colorswap": task}


BENCHMARK = Benchmark(
    name="colorswap",
    title="ColorSwap",
    licence="MIT",
    source="https://github.com/Top34051/colorswap (its README links the data)",
    layout=("colorswap/test.json", "colorswap/images.zip (or unpacked: images/*.png)"),
    loader=load,
    expected={"colorswap": 300},
    headlines=tuple(Headline(metric, metric, "colorswap") for metric in ("text", "image", "group")),
    size="0.9 GB",
    reference="Burapacheep et al., ACL Findings 2024",
)
