"""NegBench, multiple choice: one image, four captions about what is and is not there; three files.

Its retrieval files hold captions as Python source to be evaluated, and its videos need another loader:
both are left out. Expected counts are the denominators of the authors' published accuracies; the
synthetic file's is not published, so that a run on it is never called complete.
Reference: Alhamoud et al., CVPR 2025; github.com/m1k2zoo/negbench.
"""

from __future__ import annotations

from pathlib import Path

from open_clip_triplet.evaluation.benchmarks.base import (
    COCO_2017,
    Benchmark,
    Headline,
    csv_rows,
    find_image,
    is_caption,
    subset_files,
)
from open_clip_triplet.evaluation.tasks import Choice, ChoiceTask

FILES = {
    "coco_mcq": "COCO_val_mcq_llama3.1_rephrased.csv",
    "voc2007_mcq": "VOC2007_mcq_llama3.1_rephrased.csv",
    "synthetic_mcq": "synthetic_mcq_llama3.1_rephrased.csv",
}
SIZES = {"coco_mcq": 5914, "voc2007_mcq": 5031}
TYPES = ("positive", "negative", "hybrid")
IMAGES = (*COCO_2017, "voc2007/JPEGImages", "VOCdevkit/VOC2007/JPEGImages", "negbench/images/synthetic")


def load(root: Path) -> dict[str, ChoiceTask]:
    tasks = {}
    folders = [root / name for name in IMAGES]
    for subset, path in subset_files(root, ["negbench/images", "negbench"], FILES):
        task = tasks[subset] = ChoiceTask([], expected=SIZES.get(subset))
        if subset not in SIZES:
            task.note = "its number of items is not published: nobody can tell whether some are missing"
        for number, (_, row) in enumerate(csv_rows(path), 2):
            name = f"{path.name} row {number}"
            task.add(_item(row, name, folders), name)
    return tasks


def _item(row: dict, name: str, folders: list[Path]) -> Choice | None:
    captions = [caption for i in range(4) if is_caption(caption := row.get(f"caption_{i}"))]
    answer, image = row.get("correct_answer"), row.get("image_path")
    if not is_caption(image) or len(captions) < 4 or answer not in ("0", "1", "2", "3"):
        return None
    right = captions.pop(int(answer))
    kind = row.get("correct_answer_template")
    groups = (kind,) if is_caption(kind) else ()
    return Choice(name, find_image(folders, image), (right,), tuple(captions), groups)


BENCHMARK = Benchmark(
    name="negbench",
    title="NegBench (multiple choice)",
    licence="code MIT; COCO and VOC images under their own terms",
    source="https://github.com/m1k2zoo/negbench (benchmarks/README.md links the CSV files)",
    layout=tuple(f"negbench/images/{file}" for file in FILES.values()) + ("coco/val2017/*.jpg",),
    loader=load,
    expected=SIZES,
    headlines=(
        *(Headline(name, "accuracy", name) for name in FILES),
        *(Headline(f"{name}, {kind}", "accuracy", name, kind) for name in FILES for kind in TYPES),
    ),
    size="COCO val2017 1 GB, VOC 2007",
    reference="Alhamoud et al., CVPR 2025",
)
