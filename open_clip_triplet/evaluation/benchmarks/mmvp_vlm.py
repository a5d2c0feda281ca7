"""MMVP-VLM: pairs of images that CLIP sees as alike, a statement about each; nine visual patterns of 15 pairs.

The authors' pair accuracy is the ``image`` score here: each statement must pick its own image of the two.
Statements get the authors' prefix "a photo of ".
Reference: Tong et al., CVPR 2024; github.com/tsb0601/MMVP (scripts/evaluate_vlm.py).
"""

from __future__ import annotations

from pathlib import Path

from open_clip_triplet.errors import DataError
from open_clip_triplet.evaluation.benchmarks.base import (
    Benchmark,
    Headline,
    csv_rows,
    find_image,
    first_file,
    is_caption,
)
from open_clip_triplet.evaluation.tasks import Pair, PairTask

#: in the order of the questions, 15 pairs each: the authors' script tells the pattern by place alone
PATTERNS = (
    "orientation_and_direction",
    "presence_of_specific_features",
    "state_and_condition",
    "quantity_and_count",
    "positional_and_relational_context",
    "color_and_appearance",
    "structural_characteristics",
    "texts",
    "viewpoint_and_perspective",
)
PAIRS = 15
PREFIX = "a photo of "
IMAGES = "MLLM_VLM Images"


def load(root: Path) -> dict[str, PairTask]:
    path = first_file(root, ["mmvp_vlm/Questions.csv", "MMVP_VLM/Questions.csv"])
    if path is None:
        return {}
    tasks = {pattern: PairTask([], expected=PAIRS) for pattern in PATTERNS}
    questions = {}
    for _, row in csv_rows(path):
        number, *found = list(row.values())[:3]
        if len(found) == 2 and all(map(is_caption, (number, *found))) and number.strip().isdecimal():
            questions[int(number)] = (found[0].strip(), found[1])
    if not questions:
        raise DataError(f"{path}: no line is a question id, a type and a statement; fetch it again")
    for index, pattern in enumerate(PATTERNS):
        for first in range(2 * PAIRS * index + 1, 2 * PAIRS * (index + 1), 2):
            pair = [questions.get(number) for number in (first, first + 1)]
            item = None if None in pair else _pair(path.parent, first, pair)
            tasks[pattern].add(item, f"Questions.csv question {first} or {first + 1}")
    return tasks


def _pair(folder: Path, first: int, pair: list) -> Pair:
    kind = Path(pair[0][0]).name  # the authors look for both images in the folder of the first one's type
    images = [find_image([folder / IMAGES / kind], f"{first + i}.jpg") for i in (0, 1)]
    captions = [PREFIX + statement for _, statement in pair]
    return Pair(str(first), (images[0], images[1]), (captions[0], captions[1]))


BENCHMARK = Benchmark(
    name="mmvp_vlm",
    title="MMVP-VLM",
    licence="MIT",
    source="https://huggingface.co/datasets/MMVP/MMVP_VLM",
    layout=("mmvp_vlm/Questions.csv", f"mmvp_vlm/{IMAGES}/*/*.jpg"),
    loader=load,
    expected=dict.fromkeys(PATTERNS, PAIRS),
    groups=PATTERNS,
    averages=(("text", "text"), ("image", "image"), ("group", "group")),
    headlines=(
        Headline("average", "image"),
        *(Headline(pattern.replace("_", " "), "image", pattern) for pattern in PATTERNS),
    ),
    size="0.1 GB",
    reference="Tong et al., CVPR 2024",
)
