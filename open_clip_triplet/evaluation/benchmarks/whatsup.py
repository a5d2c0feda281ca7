"""What'sUp: spatial prepositions; six sets, in each of which the right caption stands first.

The controlled sets show two objects in four relations, so there are also ``pair`` (of two opposite
relations of the same objects, both right) and ``set`` (all four right).
Reference: Kamath et al., EMNLP 2023; github.com/amitakamath/whatsup_vlms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from open_clip_triplet.evaluation.benchmarks.base import (
    COCO_2017,
    Benchmark,
    Headline,
    find_image,
    is_caption,
    read_list,
    subset_files,
)
from open_clip_triplet.evaluation.tasks import Choice, ChoiceTask, Outcome, proportion
from open_clip_triplet.evaluation.tasks.base import Rows

FILES = {
    "controlled_a": "controlled_images_dataset.json",
    "controlled_b": "controlled_clevr_dataset.json",
    "coco_one": "coco_qa_one_obj.json",
    "coco_two": "coco_qa_two_obj.json",
    "vg_one": "vg_qa_one_obj.json",
    "vg_two": "vg_qa_two_obj.json",
}
SIZES = {
    "controlled_a": 412,
    "controlled_b": 408,
    "coco_one": 2247,
    "coco_two": 440,
    "vg_one": 1160,
    "vg_two": 291,
}
FOLDERS = {
    "controlled_a": ("whatsup/controlled_images",),
    "controlled_b": ("whatsup/controlled_clevr",),
    "coco": (*COCO_2017, "whatsup/val2017"),
    "vg": ("whatsup/vg_images",),
}
#: the relation in a controlled image's name -> the axis that it shares with its opposite
AXES = {
    "left": "side",
    "right": "side",
    "on": "other",
    "under": "other",
    "in-front": "other",
    "behind": "other",
}


@dataclass
class ControlledTask(ChoiceTask):
    """Accuracy, and over the same objects ``pair`` and ``set``.

    A pair or set that lacks an item is wrong, as in the authors' script, which divides by the number of
    items; it can only be lacking where the data is partial.
    """

    #: per item: (objects, axis)
    places: dict[str, tuple[str, str]] = field(default_factory=dict)

    def score(self, images: Rows, texts: Rows) -> Outcome:
        outcome = super().score(images, texts)
        correct = outcome.right["accuracy"]
        together = {
            "pair": self._together(correct, 2, lambda place: place),
            "set": self._together(correct, 4, lambda place: place[0]),
        }
        outcome.right = {**outcome.right, **together}
        outcome.metrics |= {
            name: proportion(int(right.sum()), len(right)) for name, right in together.items()
        }
        return outcome

    def _together(self, correct: np.ndarray, size: int, group: Callable) -> np.ndarray:
        """[groups] whether all ``size`` items of a group are there and right."""
        counts: dict = {}
        for item, right in zip(self.items, correct):
            place = group(self.places[item.name])
            counts[place] = counts.get(place, 0) + int(right)
        return np.array([count == size for count in counts.values()], dtype=bool)


def load(root: Path) -> dict[str, ChoiceTask]:
    tasks: dict[str, ChoiceTask] = {}
    for subset, path in subset_files(root, ["whatsup", "whatsup/data"], FILES):
        names = FOLDERS.get(subset) or FOLDERS[subset.partition("_")[0]]
        folders = [root / name for name in names]
        controlled = subset.startswith("controlled")
        task = tasks[subset] = (ControlledTask if controlled else ChoiceTask)([], expected=SIZES[subset])
        for number, entry in enumerate(read_list(path)):
            item = (_controlled if controlled else _question)(entry, str(number), folders)
            task.add(item, f"{path.name} {number}")
            if item is not None and isinstance(task, ControlledTask):
                first, relation, *_, last = Path(item.image.path).stem.split("_")
                task.places[item.name] = (f"{first} {last}", AXES[relation])
    return tasks


def _controlled(entry: Any, name: str, folders: list[Path]) -> Choice | None:
    """``{"image_path": ..., "caption_options": [right, wrong, wrong, wrong]}``"""
    if not isinstance(entry, dict):
        return None
    image, options = entry.get("image_path"), entry.get("caption_options")
    if (
        not is_caption(image)
        or not isinstance(options, list)
        or len(options) != 4
        or not all(map(is_caption, options))
    ):
        return None
    parts = Path(image).stem.split("_")  # as mug_left_of_plate.jpeg
    if len(parts) < 3 or parts[1] not in AXES:
        return None
    return Choice(name, find_image(folders, image), (options[0],), tuple(options[1:]), (parts[1],))


def _question(entry: Any, name: str, folders: list[Path]) -> Choice | None:
    """``[image id, right caption, wrong caption]``"""
    if not isinstance(entry, list) or len(entry) != 3 or not all(map(is_caption, entry[1:])):
        return None
    if not str(entry[0]).isdecimal():
        return None
    number = str(entry[0])
    coco = any(folder.name == "val2017" for folder in folders)
    image = find_image(folders, f"{number.zfill(12) if coco else number}.jpg")
    return Choice(name, image, (entry[1],), (entry[2],))


BENCHMARK = Benchmark(
    name="whatsup",
    title="What'sUp",
    licence="annotations and controlled images MIT; COCO and Visual Genome images under Creative Commons",
    source="https://github.com/amitakamath/whatsup_vlms (its README links the JSON files and images)",
    layout=(
        *(f"whatsup/{file}" for file in FILES.values()),
        "whatsup/{controlled_images,controlled_clevr}/*.jpeg",
        "whatsup/vg_images/*.jpg",
        "coco/val2017/*.jpg",
    ),
    loader=load,
    expected=SIZES,
    groups=tuple(SIZES),
    headlines=tuple(
        Headline(f"{subset}, {label}", metric, subset)
        for subset in ("controlled_a", "controlled_b")
        for label, metric in (("individual", "accuracy"), ("pairs", "pair"), ("sets", "set"))
    )
    + tuple(Headline(subset, "accuracy", subset) for subset in SIZES if not subset.startswith("controlled")),
    size="annotations and controlled images 0.2 GB; COCO val2017 1 GB, Visual Genome images",
    reference="Kamath et al., EMNLP 2023",
)
