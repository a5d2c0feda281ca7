"""Verify negatives: named checks score every sample, thresholds then keep, mark or drop.

``four-way`` (CLIP: both images closer to their own caption), ``entailment`` (the captions must not follow
from each other), ``questions`` (a model answers questions about the negative image, as the paper's
appendix F). Scores stay under ``.work``, one folder a check: another threshold scores nothing again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from open_clip_triplet.files import join
from open_clip_triplet.tripletdata.backends.factory import add_model_arguments, make_model
from open_clip_triplet.tripletdata.backends.openclip import check_weights
from open_clip_triplet.tripletdata.backends.vqa import VisualQuestions
from open_clip_triplet.tripletdata.checks.entailment import Entailment
from open_clip_triplet.tripletdata.checks.four_way import FourWay
from open_clip_triplet.tripletdata.checks.questions import PROMPT, Questions
from open_clip_triplet.tripletdata.run import options
from open_clip_triplet.tripletdata.run.command import report, run_as_asked
from open_clip_triplet.tripletdata.run.estimate import print_plan
from open_clip_triplet.tripletdata.run.folder import refuse_foreign
from open_clip_triplet.tripletdata.run.sample import Sample, Stats
from open_clip_triplet.tripletdata.run.stage import Stage
from open_clip_triplet.tripletdata.run.task import ShardTask
from open_clip_triplet.tripletdata.stages.filter import kept_tasks

HELP = "check that negatives are negatives: CLIP, entailment, question answering"

EXAMPLES = """\
examples:
  triplet-shards verify --input triplets/ --output verified/ --checks four-way entailment
  triplet-shards verify --input triplets/ --output marked/ --checks questions --action mark --backend openai

"""

CHECKS = ("four-way", "entailment", "questions")


@dataclass
class Verified(Stage):
    """Stage: the last one; leaves out, or marks, what fails a check.

    Args:
        checks: those that decide, in order; the first that fails is the reason counted.
        min_margin: least margin of both images, cosine. max_entailment: probability from which a caption
            follows from the other. min_accuracy: share of questions answered as expected; None decides nothing.
        action: ``drop`` or ``mark`` (``failed`` in ``verify`` of the json names the checks).
    """

    name: ClassVar[str] = "verify"
    checks: tuple[str, ...] = CHECKS[:1]
    min_margin: float = 0.0
    max_entailment: float = 0.5
    min_accuracy: float | None = None
    action: str = "drop"

    def process(self, task: ShardTask, stats: Stats) -> Iterator[Sample]:
        for sample in task.samples(stats):
            failed = self.failed(sample.meta.get("verify", {}))
            for name in failed:
                stats.count(f"fails {name}")
            if failed and self.action == "drop":
                stats.leave_out(f"fails {failed[0]}")
                continue
            if self.action == "mark":
                sample.meta = {**sample.meta, "verify": {**sample.meta["verify"], "failed": failed}}
            yield sample

    def failed(self, scores: dict) -> list[str]:
        """Names of the checks that a sample's scores do not pass. A check without scores is failed."""
        passes: dict[str, Callable[[dict], bool]] = {
            "four-way": lambda s: min(s["margin"], s["neg_margin"]) > self.min_margin,
            "entailment": lambda s: s["entailment"] <= self.max_entailment,
            "questions": lambda s: self.min_accuracy is None
            or (s["accuracy"] is not None and s["accuracy"] >= self.min_accuracy),
        }
        return [name for name in self.checks if name not in scores or not passes[name](scores[name])]


def add_arguments(parser) -> None:
    options.add_common(parser)
    default = Verified()
    group = parser.add_argument_group("checks")
    group.add_argument(
        "--checks", nargs="+", choices=CHECKS, default=["four-way", "entailment"],
        help="default four-way entailment",
    )
    group.add_argument(
        "--action", choices=["drop", "mark"], default="drop", help="for what fails a check (default drop)"
    )
    group.add_argument(
        "--min-margin", type=float, default=default.min_margin,
        help="four-way: least margin of both images, cosine (default %(default)s)",
    )
    group.add_argument(
        "--max-entailment", type=options.share, default=default.max_entailment,
        help="entailment: greatest probability, either way (default %(default)s)",
    )
    group.add_argument(
        "--min-accuracy", type=options.share, help="questions: least share answered as expected (default: only stored)"
    )
    group.add_argument(
        "--clip", default=FourWay.model, metavar="MODEL",
        help="four-way: OpenCLIP model, or a folder of your own as local-dir:FOLDER (default %(default)s)",
    )
    group.add_argument(
        "--clip-pretrained", default=FourWay.pretrained,
        help="four-way: its weights (default %(default)s; local-dir: and hf-hub: models bring theirs)",
    )
    group.add_argument("--clip-batch", type=options.positive, default=128, help="four-way: samples per batch")
    group.add_argument(
        "--nli", default=Entailment.model, metavar="MODEL", help="entailment: cross-encoder (default %(default)s)"
    )
    group.add_argument(
        "--vqa", default=VisualQuestions.model, metavar="MODEL",
        help="questions: ViLT or a vision-language model (default %(default)s)",
    )
    group.add_argument(
        "--questions", type=options.positive, default=5, help="questions per negative (default 5)"
    )
    add_model_arguments(parser, PROMPT)


def make_checks(args) -> list[Stage]:
    """The stages of ``--checks``, in the order of CHECKS, whatever order was given."""
    made: dict[str, Callable[[], Stage]] = {
        "four-way": lambda: FourWay(args.clip, args.clip_pretrained, args.clip_batch),
        "entailment": lambda: Entailment(args.nli),
        "questions": lambda: Questions(make_model(args, PROMPT), VisualQuestions(args.vqa), args.questions),
    }
    return [made[name]() for name in CHECKS if name in args.checks]


def run(args) -> int:
    if "four-way" in args.checks:
        check_weights(args.clip, args.clip_pretrained)
    checks = make_checks(args)
    tasks = options.tasks(args)
    if args.dry_run:
        return print_plan(args, tasks, checks)
    refuse_foreign(args.output, tasks)
    skip = args.skip_unreadable
    sources = {task.index: task for task in tasks}
    for check in checks:
        # Each check reads the shards beside the side shards of the one before, which carry its scores.
        work = join(args.output, ".work", check.name)
        scored = run_as_asked(check, tasks, work, args)
        if status := report(scored, skip_unreadable=skip):
            return status
        tasks = [sources[task.index].beside(join(work, task.shard)) for task in kept_tasks(scored)]
    if args.part:
        return 0
    deciding = tuple(check.name for check in checks)
    stage = Verified(deciding, args.min_margin, args.max_entailment, args.min_accuracy, args.action)
    return report(run_as_asked(stage, tasks, args.output, args, replace_settings=True), skip_unreadable=skip)
