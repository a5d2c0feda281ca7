"""What an output folder remembers: who made it (``stage.json``), who has which number (``plan.json``), and
for every finished shard a record, written after the shard.

Beside ``00017.record.json`` there may be ``00017.values.json`` (a value for each sample that was kept, by
name), ``00017.dropped.json`` (the keys of dropped samples, by reason) and ``00017.answers.json`` (what a
model answered for those, by key, where the answer was refused).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field

from open_clip_triplet import files
from open_clip_triplet.errors import PipelineError, ShardError
from open_clip_triplet.tripletdata.run.folder import REFUSED
from open_clip_triplet.tripletdata.run.plan import read_json, write_plan
from open_clip_triplet.tripletdata.run.stage import Stage, config_hash
from open_clip_triplet.tripletdata.run.task import ShardTask

RECORD, VALUES, DROPPED, ANSWERS = ".record.json", ".values.json", ".dropped.json", ".answers.json"


def dump(value, **options) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, **options) + "\n"


@dataclass
class Run:
    """A stage, its tasks, and the folder or url that their shards go to.

    ``failed``: input -> why; those of ``unreadable`` among them because they cannot be read.
    """

    stage: Stage
    tasks: list[ShardTask]
    output: str
    failed: dict[str, str] = field(default_factory=dict)
    unreadable: set[str] = field(default_factory=set)
    plan: dict[int, str] = field(default_factory=dict)
    _sizes: dict[str, dict[str, int]] = field(default_factory=dict)

    def failures(self, skip_unreadable: bool) -> dict[str, str]:
        """``failed``, but for what cannot be read where that is allowed."""
        allowed = self.unreadable if skip_unreadable else set()
        return {shard: error for shard, error in self.failed.items() if shard not in allowed}

    def path(self, name: str) -> str:
        return files.join(self.output, name)

    @functools.cached_property
    def _records(self) -> dict[str, dict]:
        found = {}
        for name, data in files.read_many(self.output, RECORD).items():
            with contextlib.suppress(ValueError):  # a damaged record is none
                found[name.removesuffix(RECORD)] = json.loads(data)
        return found

    def load(self) -> None:
        """Read the folder's records again."""
        self._sizes.clear()
        self.__dict__.pop("_records", None)

    def record(self, task: ShardTask) -> dict | None:
        """A task's record; None where it is not done."""
        return self._records.get(task.name)

    def note(self, task: ShardTask, record: dict | None) -> None:
        """Take over the record of a task that was worked just now."""
        self._records.pop(task.name, None)
        if record:
            self._records[task.name] = record

    def read_values(self, task: ShardTask) -> dict[str, list]:
        """What the stage found for each sample of a done task: name -> one value per kept sample."""
        return json.loads(files.read_bytes(self.path(task.name + VALUES)))

    def records(self, numbers: Iterable[int] | None = None) -> list[dict]:
        """Records of finished shards, those of inputs that are no longer listed too, in order of number."""
        chosen = sorted({*self.plan, *(t.index for t in self.tasks)} if numbers is None else numbers)
        return [record for n in chosen if (record := self._records.get(f"{n:05d}"))]

    def size_of(self, url: str) -> int:
        """Bytes of a file; a remote folder is listed once."""
        if not files.is_remote(url):
            return files.size_of(url)
        folder, name = url.rsplit("/", 1)
        if folder not in self._sizes:
            self._sizes[folder] = files.list_files(folder)
        if name not in self._sizes[folder]:
            raise FileNotFoundError(2, "no such file", url)
        return self._sizes[folder][name]

    def claim(self, *, replace: bool = False) -> None:
        """Write down what makes this folder, and which input has which number.

        Args:
            replace: another configuration replaces the one there, shard by shard.

        Raises:
            PipelineError: the folder is of another configuration or of other inputs.
        """
        path = self.path("stage.json")
        mine = json.loads(dump({"stage": self.stage.name, **self.stage.config()}))
        theirs = read_json(path)
        if not theirs and files.exists(path):
            raise PipelineError(f"{path}: damaged. Remove the folder to start again.", REFUSED)
        if theirs and theirs != mine and not replace:
            names = sorted(name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name))
            changes = "; ".join(f"{n}: {_short(theirs.get(n))} there, {_short(mine.get(n))} now" for n in names)
            raise PipelineError(
                f"{self.output} was made with another configuration ({changes}). "
                "Choose another --output, or use the same settings to continue.",
                REFUSED,
            )
        self.plan = write_plan(self.output, self.tasks)
        if theirs != mine:
            files.write_text_durably(path, dump(mine, indent=1))

    def state(self, task: ShardTask) -> str:
        """``todo``, ``redo`` (some samples are asked for again) or ``done``.

        Raises:
            PipelineError: the finished shard was made from something else.
        """
        record = self.record(task)
        if record is None or record["config"] != config_hash(self.stage) or not self._whole(record):
            self.note(task, None)
            return "todo"
        redo = task.policy.redo
        was, now = record["inputs"], self._inputs_now(task)
        # Inputs that are gone are no reason to redo finished work.
        if len(was) != len(now) or any(item not in (None, before) for before, item in zip(was, now)):
            if record.get("salvaged"):
                return "todo"
            if redo is not None and _asked_again(was, task):
                return "redo"
            raise PipelineError(
                f"{self.path(task.shard)} was made from {', '.join(map(_described, was))}; {task.origin} is "
                f"now {', '.join(_described(item) for item in now if item)}. "
                "Choose another --output, or restore the input and its options.",
                REFUSED,
            )
        if redo is not None and any(reason in record["dropped"] for reason in redo or record["dropped"]):
            return "redo"
        return "done"

    def _inputs_now(self, task: ShardTask) -> list[dict | None]:
        """``ShardTask.identity``, None for an input that is not there."""
        found: list[dict | None] = []
        for number, url in enumerate(task.inputs):
            alone = task if not number and len(task.inputs) == 1 else dataclasses.replace(
                task, inputs=(url,), rows=None if number else task.rows
            )
            try:
                found += alone.identity(self.size_of)
            except ShardError:
                found.append(None)
        return found

    def _whole(self, record: dict) -> bool:
        """Whether a record's shard is there, with the bytes that it was written with."""
        if not record["kept"]:
            return True
        try:
            return self.size_of(self.path(record["shard"])) == record["bytes"]
        except OSError:
            return False


def check_reasons(output: str, reasons: Iterable[str]) -> None:
    """Check that the shards of ``output``, or of its stages, dropped samples for each of the reasons.

    Nothing is refused where nothing is finished. After an earlier ``--redo-dropped``, which may have left
    nothing of a reason, that is only told.

    Raises:
        PipelineError: no sample was dropped for one of them; the reasons that there are are named.
    """
    with files.opened(output) as (fs, path):
        names = [name for name in fs.find(path, maxdepth=3) if name.endswith(RECORD)]  # .work/STAGE/00000...
    records = [record for name in names if (record := read_json(fs.unstrip_protocol(name)))]
    there = {reason for record in records for reason in record["dropped"]}
    if not records or not (unknown := sorted(set(reasons) - there)):
        return
    message = (
        f"--redo-dropped: no sample in {output} is dropped for {', '.join(map(repr, unknown))}. "
        f"Reasons there: {'; '.join(sorted(there)) or 'none'}"
    )
    if not any("redo_round" in record for record in records):
        raise PipelineError(message, 2)
    print(message, file=sys.stderr)


def _asked_again(inputs: list[dict], task: ShardTask) -> bool:
    """Whether an input of ``task`` differs only because its own dropped samples were asked for again."""
    for item, url in zip(inputs, task.inputs):
        record = read_json(url.removesuffix(".tar") + RECORD)
        if item["name"] == os.path.basename(url) and record.get("redo_round"):
            return True
    return False


def _short(value, width: int = 60) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _described(item: dict) -> str:
    """One input of ``ShardTask.identity`` for people."""
    more = [f"{item['bytes']} bytes"] if "bytes" in item else []
    if "rows" in item:
        more.append("rows {} to {}".format(*item["rows"]))
        more += [f"{name} {value!r}" for name, value in sorted(item["table"].items()) if value]
    return f"{item['name']} ({', '.join(more)})"
