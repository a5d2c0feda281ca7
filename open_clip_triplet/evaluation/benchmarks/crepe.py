"""CREPE, productivity: a caption of rising complexity and its hard negatives; an atom replaced, words swapped,
or a negation. The image is cropped to the region that the caption is about.

``accuracy`` is the authors' R@1 with all hard negatives, over the items of all complexities, which are the
groups. Systematicity asks what the model was trained on and is left out.
Reference: Ma et al., CVPR 2023; github.com/RAIVNLab/CREPE (crepe_prod_eval_clip.py).
"""

from __future__ import annotations

import ast
from pathlib import Path

from open_clip_triplet.evaluation.benchmarks.base import (
    Benchmark,
    Headline,
    csv_rows,
    find_image,
    first_folder,
    is_caption,
)
from open_clip_triplet.evaluation.images import ImageRef
from open_clip_triplet.evaluation.tasks import Choice, ChoiceTask

SIZES = {"atom": 17698, "swap": 7405, "negate": 17303}
COMPLEXITIES = range(4, 13)
FOLDERS = ("crepe/prod_hard_negatives", "crepe/data/prod_hard_negatives", "prod_hard_negatives")
IMAGES = (
    "visual_genome/VG_100K",
    "visual_genome/VG_100K_2",
    "vg/VG_100K",
    "vg/VG_100K_2",
    "crepe/images",
    "visual_genome/images",
)
#: characters of a list of hard negatives; the longest published one has under 5,000
LONGEST = 100_000


def load(root: Path) -> dict[str, ChoiceTask]:
    folder = first_folder(root, FOLDERS)
    if folder is None:
        return {}
    images = [root / name for name in IMAGES if (root / name).is_dir()]
    tasks = {}
    for kind, size in SIZES.items():
        task = ChoiceTask([], expected=size)
        for complexity in COMPLEXITIES:
            path = folder / kind / f"prod_vg_hard_negs_{kind}_complexity_{complexity}.csv"
            if path.is_file():
                tasks[kind] = task
                for line, row in csv_rows(path):
                    name = f"{path.stem} {line}"
                    task.add(_item(row, name, complexity, images), name)
    return tasks


def _item(row: dict, name: str, complexity: int, images: list[Path]) -> Choice | None:
    caption, negatives, box = row.get("caption"), _captions(row.get("hard_negs")), _box(row)
    if not is_caption(caption) or not negatives or box is None or not str(row.get("image_id")).isdecimal():
        return None
    image = ImageRef(find_image(images, f"{row['image_id']}.jpg").path, crop=box)
    return Choice(name, image, (caption,), negatives, (f"complexity {complexity}",))


def _captions(text: str | None) -> tuple[str, ...]:
    """A list of captions written as a Python literal, which is parsed and never run; () for anything else."""
    try:
        found = ast.literal_eval(text) if text and len(text) < LONGEST else None
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return ()
    return tuple(found) if isinstance(found, list) and all(map(is_caption, found)) else ()


def _box(row: dict) -> tuple[int, int, int, int] | None:
    """(left, top, right, bottom)"""
    try:
        x, y, width, height = (int(float(row[name])) for name in ("x", "y", "width", "height"))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return (x, y, x + width, y + height) if 0 < width < 100_000 and 0 < height < 100_000 else None


BENCHMARK = Benchmark(
    name="crepe",
    title="CREPE (productivity)",
    licence="annotations: none stated by the authors; Visual Genome images CC BY 4.0",
    source="https://github.com/RAIVNLab/CREPE (data/prod_hard_negatives.zip); images: visualgenome.org",
    layout=(
        "crepe/prod_hard_negatives/{atom,swap,negate}/prod_vg_hard_negs_*_complexity_{4..12}.csv",
        "visual_genome/{VG_100K,VG_100K_2}/*.jpg",
    ),
    loader=load,
    expected=SIZES,
    groups=tuple(SIZES),
    headlines=tuple(
        Headline(f"{kind}, complexity {n}", "accuracy", kind, f"complexity {n}")
        for kind in SIZES
        for n in COMPLEXITIES
    ),
    size="annotations 6 MB; Visual Genome images 15 GB",
    reference="Ma et al., CVPR 2023",
)
