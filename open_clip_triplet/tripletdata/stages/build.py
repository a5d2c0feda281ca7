"""The whole way: rewrite? -> negative captions -> negative images? -> filter? -> pack -> data card.

Side shards of the stages are kept under ``--output``/.work until you delete them; the paired shards,
``sizes.json``, ``summary.json`` and ``README.md`` are in ``--output``. The same command continues
after a crash, and does nothing when all is done, with or without ``.work``.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

from open_clip_triplet.errors import PipelineError, ShardError
from open_clip_triplet.files import write_text_durably
from open_clip_triplet.tripletdata.run import options
from open_clip_triplet.tripletdata.run.card import write_card
from open_clip_triplet.tripletdata.run.estimate import print_plan
from open_clip_triplet.tripletdata.run.plan import plan_tasks, read_json
from open_clip_triplet.tripletdata.run.runner import (
    DONE,
    FAILED_SHARDS,
    REFUSED,
    Run,
    refuse_foreign,
    report,
    run_stage,
    totals,
)
from open_clip_triplet.tripletdata.run.task import ShardTask
from open_clip_triplet.tripletdata.stages import captions, images, rewrite
from open_clip_triplet.tripletdata.stages import filter as quality
from open_clip_triplet.tripletdata.stages.pack import Pack

HELP = "build paired shards from image-caption shards or tables, all stages in one command"


EXAMPLES = """\
examples:
  triplet-shards build --input cc3m/ --output triplets/ --workers 8
  triplet-shards build --input 'cc3m/{00000..00331}.tar' --output triplets/ --rewrite --top-k 1000000
  triplet-shards build --input table.parquet --image-root photos/ --output negclip/ --backend rules --no-images

"""


def add_arguments(parser) -> None:
    options.add_common(parser)
    group = parser.add_argument_group("stages")
    group.add_argument(
        "--rewrite", action="store_true", help="rewrite captions with the language model first"
    )
    group.add_argument("--rewrite-prompt", metavar="FILE", help="prompt of the rewrites")
    group.add_argument("--no-images", action="store_true", help="negative captions only (NegCLIP's data)")
    captions.add_caption_arguments(parser)
    images.add_image_arguments(parser)
    rewrite.add_laclip_arguments(parser)
    quality.add_filter_arguments(parser)
    group.add_argument("--title", help="heading of the data card (default the output folder's name)")


def run(args) -> int:
    if args.top_k is not None or args.threshold is not None:
        quality.check_arguments(args)
        if args.no_images:
            raise PipelineError("the filter scores negative images; leave out --no-images, --top-k and --threshold", 2)
    tasks = plan_tasks(args.input, options.table(args), args.samples_per_shard)
    stages = list(model_stages(args))
    if args.dry_run:
        return print_plan(args, tasks, stages)
    refuse_foreign(args.output, tasks)  # now, and not after days of other stages
    return Build(args, tasks).run(stages)


def model_stages(args):
    """The stages before packing, in order, without models loaded."""
    if args.rewrite or args.laclip_original:
        changed = {"prompt": args.rewrite_prompt}
        if args.backend == "rules" and not args.laclip_original:
            raise PipelineError("--rewrite needs a language model: choose another --backend", 2)
        yield rewrite.make_stage(type(args)(**{**vars(args), **changed}), images=False)
    yield captions.make_stage(args, images=False)
    if not args.no_images:
        yield images.make_stage(args, images=False)
        if args.top_k is not None or args.threshold is not None:
            yield quality.make_stage(args)


class Build:
    """Runs stages one after another over the tasks that are left, then packs and reports."""

    def __init__(self, args, tasks: list[ShardTask]):
        self.args, self.tasks = args, tasks
        self.output = Path(args.output)
        self.runs: list[Run] = []

    def run(self, stages) -> int:
        stages = list(stages)
        request = self._request(stages)
        if summary := self._finished(request):
            return self._conclude(summary)
        left = self.tasks  # what the next stage reads
        for stage in stages:
            work = self.output / ".work" / stage.name
            if stage.name == "scores":  # scores look at both images, so they need the source as well
                left = [self._joined(task, [self.runs[-1]]) for task in left]
            run = self._run(stage, left, work)
            left = [ShardTask(task.index, (str(work / task.shard),)) for task in quality.kept_tasks(run)]
        return self._pack(left, request)

    @property
    def _need(self) -> tuple[str, ...]:
        return ("text",) if self.args.no_images else ("text", "image")

    def _request(self, stages) -> str | None:
        """Hash of all that decides the result; None where an input cannot be looked at."""
        try:
            inputs = [task.identity() for task in self.tasks]
        except ShardError:
            return None
        configs = [[stage.name, stage.config()] for stage in stages]
        pack = Pack(self.args.save_size, self.args.quality, self._need).config()
        text = json.dumps(
            [inputs, configs, pack, self.args.top_k, self.args.threshold], sort_keys=True, ensure_ascii=False
        )
        return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]

    def _finished(self, request: str | None) -> dict | None:
        """The summary of an earlier run that was asked for the same and finished it, shards and all.

        Raises:
            PipelineError: the shards are of another request, and no side shards are left to tell them apart by.
        """
        summary, sizes = (read_json(self.output / name) for name in ("summary.json", "sizes.json"))
        if summary.get("request") not in (None, request) and not (self.output / ".work").exists():
            raise PipelineError(
                f"{self.output}: was built with other settings or from other inputs. "
                "Choose another --output, or use the same to continue.",
                REFUSED,
            )
        if request is None or summary.get("request") != request or summary.get("failed"):
            return None
        whole = len(sizes) == summary["shards"] and all((self.output / shard).exists() for shard in sizes)
        return summary if whole else None

    def _run(self, stage, tasks: list[ShardTask], folder: Path) -> Run:
        engine = options.engine(self.args, cpu=not stage.uses_gpu)
        run = run_stage(stage, tasks, folder, engine, quiet=self.args.quiet)
        self.runs.append(run)
        report(run)
        return run

    def _joined(self, task: ShardTask, runs: list[Run]) -> ShardTask:
        """The source of a task beside its side shards of ``runs``."""
        source = self.tasks[task.index]
        sides = [str(run.output / task.shard) for run in runs]
        return ShardTask(task.index, (*source.inputs, *sides), source.rows, source.table)

    def _pack(self, left: list[ShardTask], request: str | None) -> int:
        *_, last = self.runs
        scored = last if last.stage.name == "scores" else None
        if scored and any(run.failed for run in self.runs):
            print("Not packed: a cut-off needs the scores of every shard.", file=sys.stderr)
            return FAILED_SHARDS
        sides = [run for run in self.runs if run.stage.name in ("images", "scores")] or [last]
        chosen = quality.selection(self.args, scored) if scored else None
        stage = Pack(self.args.save_size, self.args.quality, self._need, chosen)
        self._run(stage, [self._joined(task, sides) for task in left], self.output)
        failed = {shard: error for run in self.runs for shard, error in run.failed.items()}
        summary = {**self._summary(failed), "request": request}
        write_text_durably(
            self.output / "summary.json",
            json.dumps(summary, indent=1, sort_keys=True, ensure_ascii=False) + "\n",
        )
        return self._conclude(summary)

    def _conclude(self, summary: dict) -> int:
        card = write_card(self.output, self.args.title or self.output.absolute().name, summary)
        print(f"{summary['kept']:,} samples; data card {card}", file=sys.stderr)
        return FAILED_SHARDS if summary["failed"] else DONE

    def _summary(self, failed: dict[str, str]) -> dict:
        stages = {
            run.stage.name: {"config": run.stage.config(), **totals(run.records())} for run in self.runs
        }
        first, *_, last = stages.values()
        shards = sum(1 for record in self.runs[-1].records() if record["kept"])
        failed = {os.path.basename(shard): error for shard, error in sorted(failed.items())}
        return {
            "read": first["read"],
            "kept": last["kept"],
            "shards": shards,
            "stages": stages,
            "failed": failed,
        }
