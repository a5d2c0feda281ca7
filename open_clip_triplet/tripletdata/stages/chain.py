"""A build at work: its stages one after another over the tasks that are left, then packing and the card."""

from __future__ import annotations

import hashlib
import os
import sys

from open_clip_triplet import files
from open_clip_triplet.errors import PipelineError, ShardError
from open_clip_triplet.tripletdata.run.card import write_card
from open_clip_triplet.tripletdata.run.command import DONE, FAILED_SHARDS, report, run_as_asked
from open_clip_triplet.tripletdata.run.folder import REFUSED
from open_clip_triplet.tripletdata.run.plan import read_json
from open_clip_triplet.tripletdata.run.records import Run, dump
from open_clip_triplet.tripletdata.run.runner import run_stage, totals, write_summary
from open_clip_triplet.tripletdata.run.stage import Stage
from open_clip_triplet.tripletdata.run.task import ShardTask
from open_clip_triplet.tripletdata.stages import filter as quality
from open_clip_triplet.tripletdata.stages.pack import Pack

#: what each stage counted of each shard; outlives .work
HISTORY = "history.json"


class Build:
    """Runs stages one after another over the tasks that are left, then packs and reports."""

    def __init__(self, args, tasks: list[ShardTask]):
        self.args, self.tasks = args, tasks
        self._by_index = {task.index: task for task in tasks}
        self.output = os.fspath(args.output)
        self.runs: dict[str, Run] = {}
        self.history: dict[str, dict] = read_json(files.join(self.output, HISTORY))

    def run(self, stages: list[Stage]) -> int:
        settings = self._settings(stages)
        if summary := self._finished(settings):
            return self._conclude(summary)
        self._sides = [s.name for s in stages if s.name in ("images", "scores")] or [stages[-1].name]
        scored = stages[-1].name == "scores"
        packed = [] if scored else self._packed()
        settled = {task.index for task in [*packed, *([] if scored else self._kept_nothing())]}
        left = [task for task in self.tasks if task.index not in settled]  # what the next stage reads
        for stage in stages:
            work = self._work(stage.name)
            if stage.reads_source:
                left = [self._by_index[task.index].beside(task.inputs[0]) for task in left]
            run = self._run(stage, left, work)
            left = [task.on(run.path(task.shard)) for task in quality.kept_tasks(run)]
        return self._pack([*packed, *left], settings, scored)

    def _work(self, stage: str) -> str:
        return files.join(self.output, ".work", stage)

    def _chained(self, task: ShardTask) -> ShardTask:
        """The source of a task beside the side shards that packing joins."""
        return self._by_index[task.index].beside(*(files.join(self._work(s), task.shard) for s in self._sides))

    def _packer(self, selection=None) -> Pack:
        args = self.args
        need = ("text",) if args.no_images else ("text", "image")
        return Pack(args.save_size, args.quality, need, selection, not args.text_only)

    def _settings(self, stages: list[Stage]) -> str:
        """Hash of all options that decide the result."""
        configs = [[stage.name, stage.config()] for stage in stages]
        asked = [configs, self._packer().config(), self.args.top_k, self.args.threshold]
        return _hash(asked)

    def _finished(self, settings: str) -> dict | None:
        """The summary of an earlier run that was asked for the same and finished it, shards and all.

        Raises:
            PipelineError: the shards were built with other settings, and no side shards are left to continue
                from.
        """
        summary, sizes = (read_json(files.join(self.output, n)) for n in ("summary.json", "sizes.json"))
        if summary.get("settings") not in (None, settings) and not self._has_work():
            raise PipelineError(
                f"{self.output}: was built with other settings. "
                "Choose another --output, or use the same to continue.",
                REFUSED,
            )
        if summary.get("settings") != settings or summary.get("failed") or self.args.redo_dropped is not None:
            return None
        inputs, found = self._inputs(), files.list_files(self.output)
        whole = len(sizes) == summary["shards"] and sizes.keys() <= found.keys()
        return summary if whole and inputs and summary["inputs"] == inputs else None

    def _inputs(self) -> str:
        """Hash of all inputs; empty where one cannot be read."""
        try:
            return _hash([task.identity() for task in self.tasks])
        except ShardError:
            return ""

    def _has_work(self) -> bool:
        return any(files.is_folder(self._work(name)) for name in ("rewrite", "captions", "images"))

    def _packed(self) -> list[ShardTask]:
        """Tasks whose shard is finished, whether or not its side shards are still there."""
        if self.args.redo_dropped is not None or not files.exists(files.join(self.output, "stage.json")):
            return []
        run = Run(self._packer(), self.tasks, self.output)
        return [task for task in self.tasks if run.state(self._chained(task)) == "done"]

    def _kept_nothing(self) -> list[ShardTask]:
        """Tasks of which an earlier run, whose side shards are gone, kept nothing."""
        if self._has_work():
            return []
        empty = {name for stage in self.history.values() for name, r in stage.items() if not r["kept"]}
        return [task for task in self.tasks if task.name in empty]

    def _run(self, stage: Stage, tasks: list[ShardTask], folder: str, **more) -> Run:
        if not tasks and not files.is_folder(folder):
            run = Run(stage, tasks, folder)
        elif self.args.finish and stage.name != "pack":
            run = run_stage(stage, tasks, folder, _not_done, quiet=True)
        else:
            run = run_as_asked(stage, tasks, folder, self.args, all_tasks=False, **more)
        self.runs[stage.name] = run
        if tasks:
            report(run, skip_unreadable=self.args.skip_unreadable)
        return run

    def _pack(self, left: list[ShardTask], settings: str, scored: bool) -> int:
        if scored and self.args.part:
            print("Run the same command with --finish, without --part, after the last part.", file=sys.stderr)
            return FAILED_SHARDS if self._failures() else DONE
        if scored and self._failures():
            print("Not packed: a cut-off needs the scores of every shard.", file=sys.stderr)
            return FAILED_SHARDS
        selection = quality.selection(self.args, self.runs["scores"]) if scored else None
        chain = sorted(map(self._chained, left), key=lambda task: task.index)
        packed = self._run(self._packer(selection), chain, self.output, replace_settings=scored)
        if self.args.part:
            if not self._all_parts_done():
                print("This part is done; the last one, or --finish, writes the card.", file=sys.stderr)
                return FAILED_SHARDS if self._failures() else DONE
            write_summary(packed)
        self._remember()
        summary = self._summary(packed, settings)
        files.write_text_durably(files.join(self.output, "summary.json"), dump(summary, indent=1))
        return self._conclude(summary)

    def _all_parts_done(self) -> bool:
        """Whether the other parts have settled their tasks, too."""
        for run in self.runs.values():
            run.load()
        return all(
            any((record := run.record(task)) and not record["kept"] for run in self.runs.values())
            or self.runs["pack"].record(task)
            for task in self.tasks
        )

    def _failures(self) -> dict[str, str]:
        """Input -> why it is not done; unreadable ones only where that was not allowed."""
        failures: dict[str, str] = {}
        for run in self.runs.values():
            failures.update(run.failures(self.args.skip_unreadable))
        return failures

    def _remember(self) -> None:
        """Keep what each stage counted, shard by shard: the card tells it when the side shards are gone."""
        for name, run in self.runs.items():
            counted = {
                task.name: {kind: record[kind] for kind in ("read", "kept", "dropped", "left_out", "counts")}
                for task in self.tasks
                if (record := run.record(task))
            }
            self.history[name] = {**self.history.get(name, {}), **counted}
        files.write_text_durably(files.join(self.output, HISTORY), dump(self.history))

    def _summary(self, packed: Run, settings: str) -> dict:
        in_set = {task.name for task in self.tasks} | {r["shard"][:-4] for r in packed.records()}
        stages = {}
        for name, run in self.runs.items():
            counted = self.history.get(name, {})
            stages[name] = {
                "config": run.stage.config(),
                **totals([counted[task] for task in sorted(counted) if task in in_set]),
            }
        first, *_, last = stages.values()
        failed = {shard: error for run in self.runs.values() for shard, error in run.failed.items()}
        return {
            "read": first["read"],
            "kept": last["kept"],
            "shards": sum(1 for record in packed.records() if record["kept"]),
            "stages": stages,
            "failed": {os.path.basename(s): error for s, error in sorted(failed.items())},
            "settings": settings,
            "inputs": self._inputs(),
        }

    def _conclude(self, summary: dict) -> int:
        card = write_card(self.output, self.args.title or _title(self.output), summary)
        print(f"{summary['kept']:,} samples; data card {card}", file=sys.stderr)
        return FAILED_SHARDS if self._failures() or not summary["kept"] else DONE


def _not_done(stage: Stage, tasks: list[ShardTask], output: str, progress):
    """The engine of --finish: it has no model."""
    for task in tasks:
        yield "failed", task, f"{stage.name} is not done; run its part again"


def _hash(value) -> str:
    return hashlib.sha256(dump(value).encode("utf-8", "replace")).hexdigest()[:16]


def _title(output: str) -> str:
    return os.path.basename(output.rstrip("/") if files.is_remote(output) else os.path.abspath(output))
