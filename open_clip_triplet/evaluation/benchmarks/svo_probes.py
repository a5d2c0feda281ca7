"""SVO-Probes: a sentence, its image, and one that differs in subject, verb or object.

Here the sentence must be closer to its own image, as dual encoders are compared. The authors threshold every
pair of sentence and image alone, which needs a matching head. Images are to be fetched from their addresses,
of which many no longer answer, so most runs are partial.
Reference: Hendricks and Nematzadeh, ACL Findings 2021; github.com/google-deepmind/svo_probes.
"""

from __future__ import annotations

from pathlib import Path

from open_clip_triplet.evaluation.benchmarks.base import (
    Benchmark,
    csv_rows,
    first_file,
    is_caption,
)
from open_clip_triplet.evaluation.images import ImageRef
from open_clip_triplet.evaluation.tasks import ImageChoice, ImageChoiceTask

SUBSETS = ("subj_neg", "verb_neg", "obj_neg")
SUFFIXES = (".jpg", ".jpeg", ".png", "")


def load(root: Path) -> dict[str, ImageChoiceTask]:
    path = first_file(root, ["svo_probes/svo_probes.csv"])
    if path is None:
        return {}
    note = "its number of items is not published: nobody can tell whether some are missing"
    tasks = {subset: ImageChoiceTask([], note=note) for subset in SUBSETS}
    there = _images(path.parent / "images")
    for line, row in csv_rows(path):
        _append(tasks, row, f"svo_probes.csv line {line}", path.parent / "images", there)
    return tasks


def _images(folder: Path) -> dict[str, str]:
    """id -> file name, listed once: looking for five endings of 70,000 files takes minutes on a network disk."""
    if not folder.is_dir():
        return {}
    return {path.stem: path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES}


def _append(tasks: dict, row: dict, name: str, folder: Path, there: dict[str, str]) -> None:
    kinds = [subset for subset in SUBSETS if str(row.get(subset)).strip().lower() == "true"]
    ids = [str(row.get(f"{side}_image_id") or "").strip() for side in ("pos", "neg")]
    item = None
    if len(kinds) == 1 and is_caption(row.get("sentence")) and all(x.isdecimal() for x in ids):
        images = tuple(ImageRef(str(folder / there.get(x, f"{x}.jpg"))) for x in ids)
        item = ImageChoice(name, row["sentence"].strip(), images)
    tasks[(kinds or SUBSETS)[0]].add(item, name)


BENCHMARK = Benchmark(
    name="svo_probes",
    title="SVO-Probes",
    licence="annotations CC BY 4.0; images from the web, to be fetched from the addresses in the file",
    source="https://github.com/google-deepmind/svo_probes (svo_probes.csv)",
    layout=("svo_probes/svo_probes.csv", "svo_probes/images/<image id>.jpg"),
    loader=load,
    expected={},
    groups=SUBSETS,
    size="annotations 14 MB; images from the web",
    reference="Hendricks and Nematzadeh, ACL Findings 2021",
)
