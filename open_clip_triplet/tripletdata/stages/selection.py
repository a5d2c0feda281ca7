"""Which samples stay: the best by score, exactly, or those that nobody has marked."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from dataclasses import dataclass

from open_clip_triplet.errors import PipelineError
from open_clip_triplet.files import read_bytes
from open_clip_triplet.tripletdata.run.sample import Sample
from open_clip_triplet.tripletdata.run.task import ShardTask


@dataclass
class Selection:
    """Which scored samples stay: all above ``cutoff``, and of those equal to it the first ``ties`` of a task.

    ``ties`` maps task number to how many; a task that is not in it keeps none of its ties.
    ``ties`` None keeps every tie (a threshold).
    """

    reason = "below the cut-off"
    cutoff: float
    ties: dict[int, int] | None = None

    def config(self) -> dict:
        ties = None if self.ties is None else {str(task): number for task, number in self.ties.items()}
        return {"cutoff": self.cutoff, "ties": ties}

    def keeper(self, task: ShardTask):
        """A function of a sample: whether it stays. To be asked once per sample, in order."""
        left = float("inf") if self.ties is None else self.ties.get(task.index, 0)

        def keep(sample: Sample) -> bool:
            nonlocal left
            score = sample.meta["scores"]["mean"]
            if score != self.cutoff:
                return score > self.cutoff
            left -= 1
            return left >= 0

        return keep


def select_top(scores: dict, count: int) -> Selection:
    """The selection that keeps exactly the ``count`` best of all tasks' scores (all, if there are fewer).

    Args:
        scores: task number -> that task's scores, a list or array of floats.

    >>> select_top({0: [0.1, 0.5], 1: [0.5, 0.9]}, 2)
    Selection(cutoff=0.5, ties={0: 1})
    """
    import numpy as np

    scores = {task: np.asarray(values, dtype=np.float64) for task, values in scores.items()}
    values = np.concatenate([*scores.values(), np.empty(0)])
    if count <= 0 or not len(values):
        return Selection(float("inf"), {})
    count = min(count, len(values))
    cutoff = float(np.partition(values, len(values) - count)[len(values) - count])
    left, ties = count - int((values > cutoff).sum()), {}
    for task in sorted(scores):
        taken = min(left, int((scores[task] == cutoff).sum()))
        if taken:
            ties[task], left = taken, left - taken
    return Selection(cutoff, ties)


@dataclass
class Unmarked:
    """Leaves out the samples whose key, or source key, has a mark.

    Args:
        listed: (shard, key) pairs: the name of an input shard, "" for any.
    """

    reason = "marked to be dropped"
    listed: frozenset[tuple[str, str]]

    def config(self) -> dict:
        lines = sorted("/".join(filter(None, item)) for item in self.listed)
        digest = hashlib.sha256("\0".join(lines).encode("utf-8", "replace")).hexdigest()
        return {"drop_list": digest[:16], "keys": len(self.listed)}

    def keeper(self, task: ShardTask):
        shards = ("", os.path.basename(task.origin.rstrip("/")))

        def keep(sample: Sample) -> bool:
            keys = (sample.key, sample.input_key, str(sample.meta.get("source_key")))
            return not any((shard, key) in self.listed for shard in shards for key in keys)

        return keep


def read_drop_list(path: str, marks: list[str] | None) -> Unmarked:
    """The samples of a csv with the columns ``key`` and ``mark``, and ``shard`` where keys are not unique.

    Args:
        marks: the marks that drop a sample; None means every mark that is not empty, ``keep`` or ``good``.

    Raises:
        PipelineError: the file cannot be read, lacks a column or one of ``marks``, or marks nothing.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(read_bytes(path).decode("utf-8-sig"), newline="")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PipelineError(f"--drop-list {path}: cannot be read ({error})", 2) from error
    if not rows or not {"key", "mark"} <= set(rows[0]):
        raise PipelineError(f"--drop-list {path}: needs rows with the columns key and mark", 2)
    there = {row["mark"] for row in rows} - {"", None}
    if wrong := set(marks or ()) - there:
        raise PipelineError(f"--drop-mark {' '.join(sorted(wrong))}: {path} has {', '.join(sorted(there))}", 2)
    chosen = set(marks) if marks else there - {"keep", "good"}
    if not chosen:
        raise PipelineError(f"--drop-list {path}: marks nothing to be dropped ({', '.join(sorted(there))})", 2)
    return Unmarked(
        frozenset((os.path.basename(row.get("shard") or ""), row["key"]) for row in rows if row["mark"] in chosen)
    )
