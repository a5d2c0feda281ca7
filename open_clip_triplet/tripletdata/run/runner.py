"""Runs a stage over tasks: skip what is done, write each shard whole, record it last.

A stage's output folder holds ``{00000..}.tar``, one ``{00000}.record.json`` per shard (beside it
``{00000}.values.json`` where a stage finds a value for each sample), ``stage.json`` (the
configuration), and when all is done ``sizes.json`` and ``summary.json``. A shard counts as done when
its record is there; the record is written after the shard. Nothing in the folder depends on time,
host or engine, so that an interrupted and resumed run leaves the bytes of an undisturbed one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from open_clip_triplet.errors import PipelineError, ShardError
from open_clip_triplet.files import write_text_durably
from open_clip_triplet.shards import ShardWriter, write_sizes
from open_clip_triplet.tripletdata.run.sample import Stats
from open_clip_triplet.tripletdata.run.stage import Stage, config_hash
from open_clip_triplet.tripletdata.run.tables import TABLES
from open_clip_triplet.tripletdata.run.task import ShardTask

DONE, FAILED_SHARDS, REFUSED = 0, 3, 2


@dataclass
class Run:
    """A stage, its tasks, and where their shards go."""

    stage: Stage
    tasks: list[ShardTask]
    output: Path
    failed: dict[str, str] = field(default_factory=dict)
    _records: dict[int, dict] = field(default_factory=dict)

    def record_path(self, task: ShardTask) -> Path:
        return Path(self.output) / f"{task.name}.record.json"

    def values_path(self, task: ShardTask) -> Path:
        return Path(self.output) / f"{task.name}.values.json"

    def read_record(self, task: ShardTask) -> dict | None:
        """A task's record, read from disk once; None where it is not done."""
        if task.index not in self._records:
            try:
                self._records[task.index] = json.loads(self.record_path(task).read_text(encoding="utf-8"))
            except (OSError, ValueError):
                return None
        return self._records[task.index]

    def read_values(self, task: ShardTask) -> dict[str, list]:
        """What the stage found for each sample of a done task: name -> one value per kept sample."""
        return json.loads(self.values_path(task).read_text(encoding="utf-8"))

    def forget(self, task: ShardTask) -> None:
        """Read the record again next time: the task has been, or is to be, worked."""
        self._records.pop(task.index, None)

    def records(self) -> list[dict]:
        return [record for task in self.tasks if (record := self.read_record(task))]


def run_task(stage: Stage, task: ShardTask, output: str | os.PathLike, report=lambda fraction: None) -> dict:
    """Work one task: shard first, record last. Returns the record.

    Raises:
        ShardError: an input is missing or damaged.
        PipelineError: the disk is full.
    """
    run, stats = Run(stage, [task], Path(output)), Stats(report)
    try:
        samples = stage.process(task, stats)
        first, kept = next(samples, None), 0
        if first is not None:
            with ShardWriter(run.output / task.shard) as writer:
                writer.write(first.members())
                for sample in samples:
                    writer.write(sample.members())
            kept = len(writer)
        record = {
            "shard": task.shard,
            "stage": stage.name,
            "config": config_hash(stage),
            "inputs": task.identity(),
            "read": stats.read,
            "kept": kept,
            "dropped": stats.dropped,
            "counts": stats.counts,
        }
        lost = stats.read - kept - sum(stats.dropped.values())
        if lost:
            raise RuntimeError(
                f"{stage.name} lost count of {lost} of {stats.read} samples of {task.inputs[0]}"
            )
        if stats.values:  # apart from the record, which every resumed run reads
            write_text_durably(run.values_path(task), json.dumps(stats.values, ensure_ascii=False) + "\n")
        write_text_durably(
            run.record_path(task), json.dumps(record, sort_keys=True, ensure_ascii=False) + "\n"
        )
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise PipelineError(
                f"{output}: disk full while writing {task.shard}. "
                "Make room and run the same command again; finished shards are kept."
            ) from error
        raise
    return record


def run_stage(
    stage: Stage, tasks: list[ShardTask], output: str | os.PathLike, engine, *, quiet: bool = False
) -> Run:
    """Run every task that has no record yet, then write ``sizes.json`` and ``summary.json``.

    Args:
        engine: see engines.py; called only when there is something to do.

    Raises:
        PipelineError: another configuration or another run owns the folder, or the engine cannot go on.
    """
    run = Run(stage, tasks, Path(output))
    refuse_foreign(run.output, tasks)
    make_folder(run.output)
    with _locked(run.output):
        todo = _claim(run)
        remove_stale(run.output)
        if todo:
            _work(run, todo, engine, quiet)
            remove_stale(run.output)
        _finish(run)
    return run


def refuse_foreign(output: str | os.PathLike, tasks: list[ShardTask]) -> None:
    """Refuse a folder whose shards a run would overwrite without having made them.

    Raises:
        PipelineError: it is a folder of the input, or holds shards but no ``stage.json``.
    """
    folders = {os.path.dirname(p) for u in tasks for p in u.inputs if not p.lower().endswith(TABLES)}
    if os.path.realpath(output) in map(os.path.realpath, folders):
        raise PipelineError(
            f"{output}: holds the input, which must not be overwritten. Choose another --output.", REFUSED
        )
    shard = next(Path(output).glob("*.tar"), None)
    if shard and not (Path(output) / "stage.json").exists():
        raise PipelineError(
            f"{output}: holds {shard.name}, which no stage made (there is no stage.json). "
            "Choose another --output.",
            REFUSED,
        )


def make_folder(path: Path) -> None:
    """Create an output folder.

    Raises:
        PipelineError: it cannot be created there.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PipelineError(f"{path}: cannot be made ({error.strerror})", REFUSED) from error


@contextlib.contextmanager
def _locked(output: Path):
    with open(output / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PipelineError(
                f"{output}: another run is writing here. Wait for it, or stop it first.", REFUSED
            ) from None
        except OSError:
            pass  # a file system without locks
        yield


def remove_stale(output: Path) -> None:
    """Remove the half-written files that killed workers left."""
    for stale in output.glob(".*.tmp"):
        stale.unlink(missing_ok=True)


def _claim(run: Run) -> list[ShardTask]:
    """Units without a record. Refuses a folder of another configuration or of other inputs."""
    path = run.output / "stage.json"
    mine = {"stage": run.stage.name, **run.stage.config()}
    mine = json.loads(json.dumps(mine))  # as it will be read back: tuples are lists
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        theirs = None
    except ValueError as error:
        raise PipelineError(f"{path}: damaged ({error}). Remove the folder to start again.", REFUSED) from error
    if theirs is not None and theirs != mine:
        names = sorted(name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name))
        changes = "; ".join(f"{n}: {_short(theirs.get(n))} there, {_short(mine.get(n))} now" for n in names)
        raise PipelineError(
            f"{run.output} was made with another configuration ({changes}). "
            "Choose another --output, or use the same settings to continue.",
            REFUSED,
        )
    if theirs is None:
        write_text_durably(path, json.dumps(mine, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    return [task for task in run.tasks if not _done(run, task)]


def _short(value, width: int = 60) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _done(run: Run, task: ShardTask) -> bool:
    record = run.read_record(task)
    if record is None or (record["kept"] and not (run.output / task.shard).exists()):
        run.forget(task)
        return False
    with contextlib.suppress(ShardError):  # inputs that are gone are no reason to redo finished work
        if record["inputs"] != task.identity():
            was = ", ".join(map(_described, record["inputs"]))
            now = ", ".join(map(_described, task.identity()))
            raise PipelineError(
                f"{run.output / task.shard} was made from {was}; {task.inputs[0]} is now {now}. "
                "Choose another --output, or restore the input and its options.",
                REFUSED,
            )
    return True


def _described(item: dict) -> str:
    """One input of ``ShardTask.identity`` for people."""
    more = [f"{item['bytes']} bytes"]
    if "rows" in item:
        more.append("rows {} to {}".format(*item["rows"]))
        more += [f"{name} {value!r}" for name, value in sorted(item["table"].items()) if value]
    return f"{item['name']} ({', '.join(more)})"


def _work(run: Run, todo: list[ShardTask], engine, quiet: bool) -> None:
    from open_clip_triplet.tripletdata.run.progress import Progress

    with Progress(run.stage.name, len(run.tasks), len(run.tasks) - len(todo), quiet) as progress:
        for kind, task, value in engine(run.stage, todo, run.output, progress.fraction):
            run.forget(task)
            if kind == "done":
                progress.done(task, value)
            else:
                run.failed[task.inputs[0]] = value
                progress.say(f"{run.stage.name}: {task.shard} failed: {value}")
                progress.done(task, {"kept": 0})


def _finish(run: Run) -> None:
    """Summary of the folder as it stands; ``sizes.json`` only where every shard is done."""
    records = run.records()
    sizes = {record["shard"]: record["kept"] for record in records if record["kept"]}
    summary = {
        "stage": run.stage.name,
        "config": run.stage.config(),
        "shards": len(sizes),
        "tasks": len(run.tasks),
        "failed": dict(sorted(run.failed.items())),
        **totals(records),
    }
    write_sizes(run.output, sizes)
    write_text_durably(
        run.output / "summary.json", json.dumps(summary, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    )


def totals(records: list[dict]) -> dict:
    """``read``, ``kept``, ``dropped`` and ``counts`` summed over records."""
    total: dict = {"read": 0, "kept": 0, "dropped": {}, "counts": {}}
    for record in records:
        total["read"] += record["read"]
        total["kept"] += record["kept"]
        for kind in ("dropped", "counts"):
            for name, number in record[kind].items():
                total[kind][name] = total[kind].get(name, 0) + number
    return total


def report(run: Run) -> int:
    """Print the counts and drop reasons of a finished stage; returns the exit status."""
    total = totals(run.records())
    reasons = ", ".join(
        f"{reason} {n:,}" for reason, n in sorted(total["dropped"].items(), key=lambda kv: -kv[1])
    )
    print(
        f"{run.stage.name}: kept {total['kept']:,} of {total['read']:,} samples in {run.output}",
        file=sys.stderr,
    )
    if reasons:
        print(f"  dropped: {reasons}", file=sys.stderr)
    for shard, error in run.failed.items():
        print(f"  not done: {shard}: {error}", file=sys.stderr)
    if run.failed:
        print("  Mend these and run the same command again; only they will be redone.", file=sys.stderr)
    return FAILED_SHARDS if run.failed else DONE
