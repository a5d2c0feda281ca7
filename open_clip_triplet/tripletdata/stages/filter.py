"""Filter by CLIP score, as TripletCLIP++: the mean of s(image, caption) and s(neg image, neg caption).

Two passes: every shard is scored (side shards under ``.work/scores``, and the scores beside their
records); then one exact cut-off for the whole set decides which samples are written. Scores are
cosine similarities, -1 to 1, rounded to 6 decimals so that equal is equal; ties at the cut-off are
kept in shard order.

Reference: Patel et al., NeurIPS 2024, arXiv:2411.02545, section on data filtering.
"""

from __future__ import annotations

import sys

from open_clip_triplet.errors import PipelineError
from open_clip_triplet.files import join
from open_clip_triplet.tripletdata.backends.openclip import check_weights
from open_clip_triplet.tripletdata.checks.clip_scores import Scores
from open_clip_triplet.tripletdata.run import options
from open_clip_triplet.tripletdata.run.command import DONE, FAILED_SHARDS, report, run_as_asked
from open_clip_triplet.tripletdata.run.estimate import print_plan
from open_clip_triplet.tripletdata.run.folder import refuse_foreign
from open_clip_triplet.tripletdata.run.records import Run
from open_clip_triplet.tripletdata.run.runner import totals
from open_clip_triplet.tripletdata.run.task import ShardTask
from open_clip_triplet.tripletdata.stages.pack import Pack
from open_clip_triplet.tripletdata.stages.selection import Selection, Unmarked, read_drop_list, select_top

HELP = "keep the best samples by CLIP score, or by marks of your own"

def selection(args, scored: Run) -> Selection:
    """The selection that ``--top-k`` or ``--threshold`` asks for, from the scores beside the records."""
    if args.threshold is not None:
        return Selection(args.threshold)
    import numpy as np

    scores = {task.index: np.array(scored.read_values(task)["scores"]) for task in kept_tasks(scored)}
    return select_top(scores, args.top_k)


def add_arguments(parser) -> None:
    options.add_common(parser)
    group = add_filter_arguments(parser)
    group.add_argument(
        "--drop-list", metavar="CSV", help="leave out the samples marked in a csv of key,mark[,shard]; no scoring"
    )
    group.add_argument(
        "--drop-mark", nargs="+", metavar="MARK", help="marks that drop (default all but keep and good)"
    )


def add_filter_arguments(parser):
    group = parser.add_argument_group("filter")
    group.add_argument(
        "--top-k", type=options.positive, help="keep exactly this many samples of the whole set"
    )
    group.add_argument("--threshold", type=options.cosine, help="keep samples whose mean score is at least this")
    group.add_argument(
        "--clip", default=Scores.model, metavar="MODEL",
        help="OpenCLIP model, or a folder of your own as local-dir:FOLDER (default %(default)s)",
    )
    group.add_argument(
        "--clip-pretrained", default=Scores.pretrained,
        help="its weights: a tag or a file (default %(default)s; local-dir: and hf-hub: models bring theirs)",
    )
    group.add_argument(
        "--clip-batch", type=options.positive, default=128, help="samples per batch (default 128)"
    )
    return group


def check_arguments(args) -> None:
    rules = [args.top_k, args.threshold, getattr(args, "drop_list", None)]
    if sum(rule is not None for rule in rules) != 1:
        raise PipelineError("give one of --top-k, --threshold and --drop-list", 2)
    if args.top_k is not None or args.threshold is not None:
        check_weights(args.clip, args.clip_pretrained)  # in a build, before days of other stages


def make_stage(args) -> Scores:
    return Scores(args.clip, args.clip_pretrained, args.clip_batch)


def run(args) -> int:
    check_arguments(args)
    tasks = options.tasks(args)
    if args.dry_run:
        return print_plan(args, tasks, [] if args.drop_list else [make_stage(args)])
    refuse_foreign(args.output, tasks)
    skip = args.skip_unreadable
    if args.drop_list:
        chosen = read_drop_list(args.drop_list, args.drop_mark)
        packed = run_as_asked(Pack(0, selection=chosen, negatives=()), tasks, args.output, args)
        return report(packed, skip_unreadable=skip) or report_found(packed, chosen)
    work = join(args.output, ".work", "scores")
    scored = run_as_asked(make_stage(args), tasks, work, args)
    if (status := report(scored, skip_unreadable=skip)) or args.part:
        return status  # a cut-off over part of the set would not be the set's
    chain = [task.beside(join(work, task.shard)) for task in kept_tasks(scored)]
    stage = Pack(save_size=0, selection=selection(args, scored))
    return report(run_as_asked(stage, chain, args.output, args, replace_settings=True), skip_unreadable=skip)


def report_found(packed: Run, chosen: Unmarked) -> int:
    """Print how many samples a drop list found. That none was is a fault, once all parts of a run are done."""
    packed.load()
    found = totals(packed.records(task.index for task in packed.tasks))["left_out"].get(chosen.reason, 0)
    print(f"  drop list: {len(chosen.listed):,} samples listed, {found:,} found", file=sys.stderr)
    if found or any(packed.record(task) is None for task in packed.tasks if not task.mine):
        return DONE
    print("  None of them is in --input: were they listed from other shards?", file=sys.stderr)
    return FAILED_SHARDS


def kept_tasks(run: Run) -> list[ShardTask]:
    """Tasks of which the run's stage kept anything."""
    return [task for task in run.tasks if (record := run.record(task)) and record["kept"]]
