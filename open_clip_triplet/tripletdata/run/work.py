"""Works one task: the shard first, in a thread of its own, then what is remembered of it, the record last."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace

from open_clip_triplet import files
from open_clip_triplet.errors import PipelineError, TooManyDropped
from open_clip_triplet.shards import ShardWriter
from open_clip_triplet.tripletdata.run.folder import FULL
from open_clip_triplet.tripletdata.run.overlap import Background, Cancelled
from open_clip_triplet.tripletdata.run.plan import read_json
from open_clip_triplet.tripletdata.run.records import ANSWERS, DROPPED, RECORD, VALUES, dump
from open_clip_triplet.tripletdata.run.redo import Redo
from open_clip_triplet.tripletdata.run.sample import Sample, Stats
from open_clip_triplet.tripletdata.run.stage import Stage, config_hash
from open_clip_triplet.tripletdata.run.task import ShardTask


def run_task(stage: Stage, task: ShardTask, output: str | os.PathLike) -> dict:
    """Work one task: shard first, record last. Returns the record.

    Raises:
        ShardError: an input is missing or damaged. TooManyDropped: more than the policy allows.
        PipelineError: the disk is full.
    """
    return start_task(stage, task, output)()


def start_task(
    stage: Stage, task: ShardTask, output: str | os.PathLike, report=lambda fraction: None
) -> Callable[[], dict]:
    """The part of :func:`run_task` that needs the model. The function returned does the rest: it waits for
    the shard that a thread writes meanwhile, and records it. The next task can start before it is called.
    """
    output = os.fspath(output)
    redo = Redo.of(stage, task, output)
    stats = Stats(report, redo.round if redo else 0)
    if redo:
        task = replace(task, skip=redo.settled)
    path = files.join(output, task.shard)
    with _full_disk_explained(output, task):
        writer = Background(lambda samples: _write(path, samples, stats, task, redo))
        try:
            for sample in stage.process(task, stats):
                writer.put(sample)
        except BaseException:
            writer.cancel()
            raise

    def finish() -> dict:
        with _full_disk_explained(output, task):
            keys = writer.result()
            return _record(stage, task, output, stats, redo, keys)

    return finish


def _write(path: str, samples: Iterator[Sample], stats: Stats, task: ShardTask, redo: Redo | None) -> list[str]:
    """Write a shard, unless it holds nothing; the keys written, and before them those it held already."""
    made: list[str] = []

    def members() -> Iterator[dict]:
        for sample in samples:
            made.append(sample.key)
            yield sample.members()

    rows = redo.merged(members(), path) if redo else members()
    try:
        first = next(rows, None)
    except Cancelled:
        return made
    if first is None:
        _refuse_many_drops(stats, task, 0, redo)
        return made
    with contextlib.suppress(Cancelled), ShardWriter(path) as writer:
        writer.write(first)
        for row in rows:
            writer.write(row)
        _refuse_many_drops(stats, task, len(writer), redo)
        if redo:
            redo.write_values(stats, made)
    return made


def _refuse_many_drops(stats: Stats, task: ShardTask, kept: int, redo: Redo | None) -> None:
    """Fail a shard of which more is dropped than the policy allows, before it takes its name."""
    dropped = sum((redo.dropped(stats) if redo else stats.dropped).values())
    read = kept + dropped + sum(stats.left_out.values())
    if read and dropped > task.policy.max_drop * read:
        reasons = ", ".join(f"{r} {n:,}" for r, n in sorted(stats.dropped.items(), key=lambda kv: -kv[1]))
        raise TooManyDropped(
            f"{dropped:,} of {read:,} samples dropped ({reasons}), more than --max-drop "
            f"{task.policy.max_drop:g} allows; if that is well, give a larger one"
        )


def _record(
    stage: Stage, task: ShardTask, output: str, stats: Stats, redo: Redo | None, made: list[str]
) -> dict:
    lost = stats.read - len(made) - sum(stats.dropped.values()) - sum(stats.left_out.values())
    if lost:
        raise RuntimeError(f"{stage.name} lost count of {lost} of {stats.read} samples of {task.origin}")
    path = files.join(output, task.name)
    kept = redo.kept_with(made) if redo else made
    dropped = redo.dropped(stats) if redo else stats.dropped
    keys = redo.dropped_keys(stats) if redo else stats.dropped_keys
    salvaged = stats.salvaged or next(filter(None, (_salvaged(url) for url in task.inputs)), "")
    record = {
        "shard": task.shard,
        "stage": stage.name,
        "config": config_hash(stage),
        "inputs": task.identity(),
        "read": len(kept) + sum(dropped.values()) + sum(stats.left_out.values()),
        "kept": len(kept),
        "bytes": files.size_of(files.join(output, task.shard)) if kept else 0,
        "dropped": dropped,
        "left_out": stats.left_out,
        "counts": redo.counts if redo else stats.counts,
        **({"salvaged": salvaged} if salvaged else {}),
        **({"redo_round": redo.round} if redo else {}),
    }
    if stats.values and not redo:  # apart from the record, which every resumed run reads
        files.write_text_durably(path + VALUES, dump({"key": kept, **stats.values}))
    for name, array in stats.arrays.items():
        _write_array(f"{path}.{name}.npy", array)
    if keys:
        files.write_text_durably(path + DROPPED, dump({r: sorted(names) for r, names in keys.items()}))
    elif files.exists(path + DROPPED):  # of an earlier round, or of other settings
        files.remove(path + DROPPED)
    _write_answers(path, stats, {key for names in keys.values() for key in names}, redo)
    if not kept:
        files.remove(path + ".tar")
    files.write_text_durably(path + RECORD, dump(record))
    return record


def _write_answers(path: str, stats: Stats, dropped: set[str], redo: Redo | None) -> None:
    """Refused answers of the samples that stay dropped, to be looked at."""
    answers = {**(read_json(path + ANSWERS) if redo else {}), **stats.answers}
    answers = {key: answer for key, answer in answers.items() if key in dropped}
    if answers:
        files.write_text_durably(path + ANSWERS, dump(answers))
    elif files.exists(path + ANSWERS):
        files.remove(path + ANSWERS)


def _write_array(url: str, array) -> None:
    import numpy as np

    with files.write_whole(url) as file:
        np.save(file, array, allow_pickle=False)


def _salvaged(url: str) -> str:
    """What was wrong with the shard that a side shard was made from: once that is fixed, both change."""
    return read_json(url.removesuffix(".tar") + RECORD).get("salvaged", "") if url.endswith(".tar") else ""


@contextlib.contextmanager
def _full_disk_explained(output: str, task: ShardTask) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise PipelineError(
                f"{output}: disk full while writing {task.shard}. "
                "Make room and run the same command again; finished shards are kept."
            ) from error
        raise
