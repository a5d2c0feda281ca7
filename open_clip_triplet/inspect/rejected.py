"""What a build dropped, by stage and reason, with the answer that was refused."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from open_clip_triplet import files
from open_clip_triplet.errors import PipelineError, UsageError
from open_clip_triplet.inspect.samples import ViewSample, read_some, view_sample
from open_clip_triplet.tripletdata.run.plan import plan_tasks, read_json
from open_clip_triplet.tripletdata.run.records import ANSWERS, DROPPED

#: stages that a build keeps under ``.work``, in their order
STAGES = ("rewrite", "captions", "images", "scores")


class Dropped(NamedTuple):
    """One dropped sample: ``task`` names its shard (``00017``) and ``folder`` its stage's folder."""

    stage: str
    folder: str
    task: str
    key: str
    reason: str


def read_rejected(
    folders: Sequence[str], source: Sequence[str] | None = None, *,
    sample: int | None = None, first: int | None = None, seed: int = 0,
) -> Iterator[ViewSample]:
    """The samples that builds or stages dropped.

    Args:
        folders: output folders. source: what was given as ``--input``, for captions and images.
        sample: so many at random. first: at most so many. seed: of the random sample.

    Raises:
        UsageError: nothing was dropped there, or the source is not there.
    """
    found = [dropped for folder in folders for dropped in list_dropped(folder)]
    if not found:
        raise UsageError(f"{', '.join(folders)}: no list of dropped samples (*{DROPPED}); nothing was dropped there")
    if sample is not None:
        found = [found[n] for n in sorted(random.Random(seed).sample(range(len(found)), min(sample, len(found))))]
    by_shard = defaultdict(list)
    for dropped in found[:first]:
        by_shard[dropped.folder, dropped.task].append(dropped)
    urls = {folder: _sources(folder, source) for folder in {d.folder for d in found}} if source else {}
    for (folder, task), wanted in by_shard.items():
        yield from _of_shard(folder, task, wanted, urls.get(folder, {}).get(task))


def list_dropped(folder: str) -> Iterator[Dropped]:
    """Dropped samples of a stage's folder, or of a build's and of its stages under ``.work``."""
    inner = [(stage, files.join(folder, ".work", stage)) for stage in STAGES]
    own = read_json(files.join(folder, "stage.json")).get("stage", "pack")
    for stage, place in [*inner, (str(own), folder)]:
        for name, data in files.read_many(place, DROPPED).items():
            for reason, keys in json.loads(data).items():
                for key in keys:
                    yield Dropped(stage, place, name.removesuffix(DROPPED), key, reason)


def _sources(folder: str, source: Sequence[str]) -> dict[str, str]:
    """Input shard of each output shard, as the folder's plan numbers them."""
    try:
        tasks = plan_tasks(list(source), output=folder)
    except PipelineError as error:
        raise UsageError(f"--source: {error}") from error
    return {task.name: task.inputs[0] for task in tasks if not task.rows}


def _of_shard(folder: str, task: str, wanted: list[Dropped], source: str | None) -> Iterator[ViewSample]:
    """Samples of one shard: from the source, with what earlier stages and the refused answer say."""
    answers = read_json(files.join(folder, task + ANSWERS))
    known = _from_source(source, [d.key for d in wanted]) if source else {}
    for side in _earlier(folder, task):
        for sample in map(view_sample, read_some(side, images=False, quiet=True)):
            if any(d.key == sample.key for d in wanted):
                before = known.get(sample.key)
                sample.image = before.image if before else None
                known[sample.key] = sample
    for dropped in wanted:
        found = known.get(dropped.key) or ViewSample(dropped.key, "", [], [])
        found.key, found.shard = dropped.key, f"{task}.tar"
        if dropped.key in answers:
            found.neg_captions = [str(answers[dropped.key])]
        found.facets = {"reason": dropped.reason, "stage": dropped.stage}
        yield found


def _from_source(url: str, keys: list[str]) -> dict[str, ViewSample]:
    """Samples of an input shard by output key, which ends in the sample's number there."""
    numbers = {int(key.rpartition("_")[2]): key for key in keys if key.rpartition("_")[2].isdigit()}
    found = {}
    for number, sample in enumerate(read_some(url, numbers, quiet=True)):
        if number in numbers:
            found[numbers[number]] = view_sample(sample)
    return found


def _earlier(folder: str, task: str) -> list[str]:
    """Side shards that the stages before this one made of the same input, the first stage's first."""
    parent, _, own = folder.rstrip("/").rpartition("/")
    if not parent.endswith(".work"):
        parent, own = files.join(folder, ".work"), ""
    stages = STAGES[: STAGES.index(own)] if own in STAGES else STAGES
    sides = [files.join(parent, stage, f"{task}.tar") for stage in stages]
    return [side for side in sides if files.exists(side)]
