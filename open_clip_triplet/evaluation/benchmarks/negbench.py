"""NegBench, multiple choice: one image, four captions about what is and is not there; three files.

Its retrieval files hold captions as Python source to be evaluated, and its videos need another loader:
both are left out.
Reference: Alhamoud et al., CVPR 2025; github.com/m1k2zoo/negbench.
"""

from __future__ import annotations

import csv
from pathlib import Path

from open_clip_triplet.evaluation.benchmarks.base import COCO_2017, Benchmark, find_image, first_file
from open_clip_triplet.evaluation.tasks import Choice, ChoiceTask

FILES = {
    "coco_mcq": "COCO_val_mcq_llama3.1_rephrased.csv",
    "voc2007_mcq": "VOC2007_mcq_llama3.1_rephrased.csv",
    "synthetic_mcq": "synthetic_mcq_llama3.1_rephrased.csv",
}
IMAGES = (*COCO_2017, "voc2007/JPEGImages", "VOCdevkit/VOC2007/JPEGImages", "negbench/images/synthetic")


def load(root: Path) -> dict[str, ChoiceTask]:
    tasks = {}
    folders = [Path(root) / name for name in IMAGES]
    for subset, file in FILES.items():
        path = first_file(root, [f"negbench/images/{file}", f"negbench/{file}"])
        if path is None:
            continue
        task = tasks[subset] = ChoiceTask([])
        with open(path, encoding="utf-8", newline="") as stream:
            for number, row in enumerate(csv.DictReader(stream)):
                _append(task, row, f"{file} row {number + 2}", folders)
    if not tasks:
        raise BENCHMARK.missing(root)
    return tasks


def _append(task: ChoiceTask, row: dict, name: str, folders: list[Path]) -> None:
    captions = [row.get(f"caption_{i}") for i in range(4)]
    answer = str(row.get("correct_answer") or "")
    if not row.get("image_path") or not all(captions) or answer not in ("0", "1", "2", "3"):
        task.leave_out("annotation incomplete", name)
        return
    right = captions.pop(int(answer))
    image = find_image(folders, row["image_path"])
    group = row.get("correct_answer_template") or ""
    task.items.append(Choice(name, image, (right,), tuple(captions), group))


BENCHMARK = Benchmark(
    name="negbench",
    title="NegBench (multiple choice)",
    licence="code MIT; COCO and VOC images under their own terms",
    source="https://github.com/m1k2zoo/negbench (benchmarks/README.md links the CSV files)",
    layout=tuple(f"negbench/images/{file}" for file in FILES.values()) + ("coco/val2017/*.jpg",),
    load=load,
    expected={},
    reference="Alhamoud et al., CVPR 2025",
)
