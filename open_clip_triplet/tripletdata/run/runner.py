"""Runs a stage over units: skip what is done, write each shard whole, record it last.

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
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import ClassVar

from open_clip_triplet.errors import PipelineError, ShardError
from open_clip_triplet.files import write_text_durably
from open_clip_triplet.shards import ShardWriter, write_sizes
from open_clip_triplet.tripletdata.run.source import TABLES, Tally, Unit

DONE, FAILED_SHARDS, REFUSED = 0, 3, 2

#: metadata of stage fields that say how to work, not what comes out: left out of the configuration
HOW = {"how": True}


@dataclass
class Stage:
    """Turns one unit into one shard. Plain data until ``open``; pickled to the workers."""

    name: ClassVar[str] = "stage"

    @property
    def gpus(self) -> int:
        """GPUs that each worker needs, where there are any."""
        return getattr(getattr(self, "model", None), "tensor_parallel", 1)

    def config(self) -> dict:
        """What decides the output bytes."""
        return {f.name: getattr(self, f.name) for f in fields(self) if not f.metadata.get("how")}

    def open(self, device: str) -> None:
        """Load models on ``device`` (``cpu``, ``cuda``); called once in each worker.

        Raises:
            PipelineError: a package, model or server is missing; the message says how to get it.
        """

    def process(self, unit: Unit, tally: Tally) -> Iterator:
        """Yield the unit's output Samples in key order; count every one that is not yielded."""
        raise NotImplementedError


@dataclass
class Run:
    """A stage, its units, and where their shards go."""

    stage: Stage
    units: list[Unit]
    output: Path
    failed: dict[str, str] = field(default_factory=dict)
    _records: dict[int, dict] = field(default_factory=dict)

    def record_path(self, unit: Unit) -> Path:
        return Path(self.output) / f"{unit.name}.record.json"

    def values_path(self, unit: Unit) -> Path:
        return Path(self.output) / f"{unit.name}.values.json"

    def read_record(self, unit: Unit) -> dict | None:
        """A unit's record, read from disk once; None where it is not done."""
        if unit.index not in self._records:
            try:
                self._records[unit.index] = json.loads(self.record_path(unit).read_text(encoding="utf-8"))
            except (OSError, ValueError):
                return None
        return self._records[unit.index]

    def read_values(self, unit: Unit) -> dict[str, list]:
        """What the stage found for each sample of a done unit: name -> one value per kept sample."""
        return json.loads(self.values_path(unit).read_text(encoding="utf-8"))

    def forget(self, unit: Unit) -> None:
        """Read the record again next time: the unit has been, or is to be, worked."""
        self._records.pop(unit.index, None)

    def records(self) -> list[dict]:
        return [record for unit in self.units if (record := self.read_record(unit))]


def config_hash(stage: Stage) -> str:
    text = json.dumps([stage.name, stage.config()], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sample_seed(seed: int, key: str, attempt: int = 0) -> int:
    """A 31-bit seed of one sample's one attempt, the same on every machine.

    >>> sample_seed(0, "00000_000001") == sample_seed(0, "00000_000001")
    True
    """
    digest = hashlib.sha256(f"{seed}/{attempt}/{key}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def run_unit(stage: Stage, unit: Unit, output: str | os.PathLike, report=lambda fraction: None) -> dict:
    """Work one unit: shard first, record last. Returns the record.

    Raises:
        ShardError: an input is missing or damaged.
        PipelineError: the disk is full.
    """
    run, tally = Run(stage, [unit], Path(output)), Tally(report)
    try:
        samples = stage.process(unit, tally)
        first, kept = next(samples, None), 0
        if first is not None:
            with ShardWriter(run.output / unit.shard) as writer:
                writer.write(first.members())
                for sample in samples:
                    writer.write(sample.members())
            kept = len(writer)
        record = {
            "shard": unit.shard,
            "stage": stage.name,
            "config": config_hash(stage),
            "inputs": unit.identity(),
            "read": tally.read,
            "kept": kept,
            "dropped": tally.dropped,
            "counts": tally.counts,
        }
        lost = tally.read - kept - sum(tally.dropped.values())
        if lost:
            raise RuntimeError(
                f"{stage.name} lost count of {lost} of {tally.read} samples of {unit.inputs[0]}"
            )
        if tally.values:  # apart from the record, which every resumed run reads
            write_text_durably(run.values_path(unit), json.dumps(tally.values, ensure_ascii=False) + "\n")
        write_text_durably(
            run.record_path(unit), json.dumps(record, sort_keys=True, ensure_ascii=False) + "\n"
        )
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise PipelineError(
                f"{output}: disk full while writing {unit.shard}. "
                "Make room and run the same command again; finished shards are kept."
            ) from error
        raise
    return record


def run_stage(
    stage: Stage, units: list[Unit], output: str | os.PathLike, engine, *, quiet: bool = False
) -> Run:
    """Run every unit that has no record yet, then write ``sizes.json`` and ``summary.json``.

    Args:
        engine: see engines.py; called only when there is something to do.

    Raises:
        PipelineError: another configuration or another run owns the folder, or the engine cannot go on.
    """
    run = Run(stage, units, Path(output))
    refuse_foreign(run.output, units)
    make_folder(run.output)
    with _locked(run.output):
        todo = _claim(run)
        _sweep(run.output)
        if todo:
            _work(run, todo, engine, quiet)
            _sweep(run.output)
        _finish(run)
    return run


def refuse_foreign(output: str | os.PathLike, units: list[Unit]) -> None:
    """Refuse a folder whose shards a run would overwrite without having made them.

    Raises:
        PipelineError: it is a folder of the input, or holds shards but no ``stage.json``.
    """
    folders = {os.path.dirname(p) for u in units for p in u.inputs if not p.lower().endswith(TABLES)}
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


def _sweep(output: Path) -> None:
    """Remove the half-written files that killed workers left."""
    for stale in output.glob(".*.tmp"):
        stale.unlink(missing_ok=True)


def _claim(run: Run) -> list[Unit]:
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
    return [unit for unit in run.units if not _done(run, unit)]


def _short(value, width: int = 60) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _done(run: Run, unit: Unit) -> bool:
    record = run.read_record(unit)
    if record is None or (record["kept"] and not (run.output / unit.shard).exists()):
        run.forget(unit)
        return False
    with contextlib.suppress(ShardError):  # inputs that are gone are no reason to redo finished work
        if record["inputs"] != unit.identity():
            was = ", ".join(map(_described, record["inputs"]))
            now = ", ".join(map(_described, unit.identity()))
            raise PipelineError(
                f"{run.output / unit.shard} was made from {was}; {unit.inputs[0]} is now {now}. "
                "Choose another --output, or restore the input and its options.",
                REFUSED,
            )
    return True


def _described(item: dict) -> str:
    """One input of ``Unit.identity`` for people."""
    more = [f"{item['bytes']} bytes"]
    if "rows" in item:
        more.append("rows {} to {}".format(*item["rows"]))
        more += [f"{name} {value!r}" for name, value in sorted(item["table"].items()) if value]
    return f"{item['name']} ({', '.join(more)})"


def _work(run: Run, todo: list[Unit], engine, quiet: bool) -> None:
    from open_clip_triplet.tripletdata.run.progress import Progress

    with Progress(run.stage.name, len(run.units), len(run.units) - len(todo), quiet) as progress:
        for kind, unit, value in engine(run.stage, todo, run.output, progress.fraction):
            run.forget(unit)
            if kind == "done":
                progress.done(unit, value)
            else:
                run.failed[unit.inputs[0]] = value
                progress.say(f"{run.stage.name}: {unit.shard} failed: {value}")
                progress.done(unit, {"kept": 0})


def _finish(run: Run) -> None:
    """Summary of the folder as it stands; ``sizes.json`` only where every shard is done."""
    records = run.records()
    sizes = {record["shard"]: record["kept"] for record in records if record["kept"]}
    summary = {
        "stage": run.stage.name,
        "config": run.stage.config(),
        "shards": len(sizes),
        "units": len(run.units),
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
