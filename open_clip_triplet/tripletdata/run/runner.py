"""Runs a stage over tasks: skip what is done, write each shard whole, record it last.

A stage's output folder holds ``{00000..}.tar``, what records.py remembers of them, and ``sizes.json``
and ``summary.json``. Nothing in the folder depends on time, host or engine, so that an interrupted and
resumed run leaves the bytes of an undisturbed one.
"""

from __future__ import annotations

import os

from open_clip_triplet import files
from open_clip_triplet.shards import write_sizes
from open_clip_triplet.tripletdata.run.folder import locked, make_folder, refuse_foreign, remove_stale
from open_clip_triplet.tripletdata.run.records import Run, dump
from open_clip_triplet.tripletdata.run.stage import Stage
from open_clip_triplet.tripletdata.run.task import ShardTask


def run_stage(
    stage: Stage,
    tasks: list[ShardTask],
    output: str | os.PathLike,
    engine,
    *,
    quiet: bool = False,
    part: tuple[int, int] | None = None,
    replace_settings: bool = False,
    all_tasks: bool = True,
) -> Run:
    """Run every task that has no record yet, then write ``sizes.json`` and ``summary.json``.

    Args:
        engine: see engines.py; called only when there is something to do.
        part: (i, n) of a run that works beside n - 1 others; only tasks that are ``mine`` are worked.
        replace_settings: shards of another configuration are made again, instead of refused.
        all_tasks: whether ``tasks`` are all that the folder will have, so that the last part sees that it is.

    Raises:
        PipelineError: another configuration or another run owns the folder, or the engine cannot go on.
    """
    run = Run(stage, tasks, os.fspath(output))
    refuse_foreign(run.output, tasks)
    make_folder(run.output)
    mine = [task for task in tasks if task.mine]
    with locked(run.output, part):
        run.claim(replace=replace_settings)
        run.load()
        todo = [task for task in mine if run.state(task) != "done"]
        remove_stale(run.output, [task.name for task in mine], common=part is None)
        if todo:
            _work(run, mine, todo, engine, quiet)
            remove_stale(run.output, [task.name for task in mine], common=part is None)
        if part:
            run.load()  # what the other parts have done meanwhile
        if part is None or (all_tasks and all(map(run.record, tasks))):
            write_summary(run)
    return run


def _work(run: Run, mine: list[ShardTask], todo: list[ShardTask], engine, quiet: bool) -> None:
    from open_clip_triplet.tripletdata.run.progress import Progress

    with Progress(run.stage.name, len(mine), len(mine) - len(todo), quiet) as progress:
        for kind, task, value in engine(run.stage, todo, run.output, progress.fraction):
            if kind == "done":
                run.note(task, value)
                progress.done(task, value)
                continue
            run.note(task, None)
            run.failed[task.origin] = value
            if kind == "unreadable":
                run.unreadable.add(task.origin)
            progress.say(f"{run.stage.name}: {task.shard} failed: {value}")
            progress.done(task, {"kept": 0})


def write_summary(run: Run) -> None:
    """``sizes.json`` and ``summary.json`` of the folder as it stands."""
    records = run.records()
    sizes = {record["shard"]: record["kept"] for record in records if record["kept"]}
    summary = {
        "stage": run.stage.name,
        "config": run.stage.config(),
        "shards": len(sizes),
        "tasks": len(run.plan),
        "failed": dict(sorted(run.failed.items())),
        **totals(records),
    }
    write_sizes(run.output, sizes)
    files.write_text_durably(run.path("summary.json"), dump(summary, indent=1))


def totals(records: list[dict]) -> dict:
    """``read``, ``kept``, ``dropped``, ``left_out`` and ``counts`` summed over records."""
    total: dict = {"read": 0, "kept": 0, "dropped": {}, "left_out": {}, "counts": {}}
    for record in records:
        total["read"] += record["read"]
        total["kept"] += record["kept"]
        for kind in ("dropped", "left_out", "counts"):
            for name, number in record[kind].items():
                total[kind][name] = total[kind].get(name, 0) + number
    return total
