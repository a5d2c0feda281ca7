"""Cola, multi-object setting: two images, two captions with attributes swapped; 210 items.

The authors report the image score alone; the paper reports text, image and group.
Reference: Ray et al., NeurIPS 2023; github.com/arijitray1993/COLA.
"""

from __future__ import annotations

from pathlib import Path

from open_clip_triplet.evaluation.benchmarks.base import (
    Benchmark,
    Headline,
    find_image,
    first_file,
    first_folder,
    is_caption,
    read_list,
)
from open_clip_triplet.evaluation.tasks import Pair, PairTask

FILE = "COLA_multiobjects_matching_benchmark.json"


def load(root: Path) -> dict[str, PairTask]:
    path = first_file(root, [f"cola/data/{FILE}", f"cola/{FILE}"])
    if path is None:
        return {}
    folder = first_folder(root, ["cola/vg_gqa_images", "cola/images", "gqa/images", "visual_genome/images"])
    task = PairTask([], expected=210)
    for number, entry in enumerate(read_list(path)):
        if not (isinstance(entry, list) and len(entry) == 4 and all(map(is_caption, entry))):
            task.add(None, f"{FILE} entry {number}")
            continue
        first, second = (find_image([folder or path.parent / "images"], url) for url in entry[0::2])
        task.items.append(Pair(str(number), (first, second), (entry[1], entry[3])))
    return {"cola": task}


BENCHMARK = Benchmark(
    name="cola",
    title="Cola (multi-object)",
    licence="annotations MIT; Visual Genome images CC BY 4.0",
    source="https://github.com/arijitray1993/COLA (data/); images at the URLs in the file",
    layout=(f"cola/{FILE}", "cola/vg_gqa_images/*.jpg"),
    loader=load,
    expected={"cola": 210},
    headlines=(
        Headline("image score (the authors')", "image", "cola"),
        Headline("text score", "text", "cola"),
        Headline("group score", "group", "cola"),
    ),
    reference="Ray et al., NeurIPS 2023",
)
