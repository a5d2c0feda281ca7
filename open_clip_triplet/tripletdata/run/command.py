"""The end that every command shares: plan, dry run, run, report, exit status."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from open_clip_triplet.tripletdata.run import options
from open_clip_triplet.tripletdata.run.estimate import print_plan
from open_clip_triplet.tripletdata.run.records import Run
from open_clip_triplet.tripletdata.run.runner import run_stage, totals
from open_clip_triplet.tripletdata.run.stage import Stage
from open_clip_triplet.tripletdata.run.task import ShardTask

DONE, FAILED_SHARDS = 0, 3


def run_command(module, args) -> int:
    """Run the one stage of ``module`` (its ``make_stage(args, images=...)``) as the options ask.

    Returns:
        The exit status of the command.
    """
    tasks = options.tasks(args)
    stage = module.make_stage(args, images=not args.text_only)
    if args.dry_run:
        return print_plan(args, tasks, [stage])
    return report(run_as_asked(stage, tasks, args.output, args), skip_unreadable=args.skip_unreadable)


def run_as_asked(stage: Stage, tasks: list[ShardTask], output: str, args, **more) -> Run:
    """:func:`run_stage` with the engine, the part and the quietness of the options."""
    engine = options.engine(args, cpu=not stage.uses_gpu)
    return run_stage(stage, tasks, output, engine, quiet=args.quiet, part=args.part, **more)


def report(run: Run, *, skip_unreadable: bool = False) -> int:
    """Print the counts and drop reasons of a finished stage; returns the exit status.

    A run that keeps nothing never ends well, and neither does one with failed shards.
    """
    mine = [task.index for task in run.tasks if task.mine]
    listed = {task.index for task in run.tasks}
    total = totals(run.records())
    print(
        f"{run.stage.name}: kept {total['kept']:,} of {total['read']:,} samples in {run.output}",
        file=sys.stderr,
    )
    for kind in ("dropped", "left_out"):
        if total[kind]:
            print(f"  {kind.replace('_', ' ')}: {by_count(total[kind])}", file=sys.stderr)
    done = {record["shard"] for record in run.records(n for n in run.plan if n not in listed)}
    unlisted = [f"{n:05d}.tar ({name})" for n, name in run.plan.items() if f"{n:05d}.tar" in done]
    if unlisted:
        print(f"  kept from inputs that are no longer listed: {_few(unlisted)}", file=sys.stderr)
    for shard, error in run.failed.items():
        how = "skipped" if skip_unreadable and shard in run.unreadable else "not done"
        print(f"  {how}: {shard}: {error}", file=sys.stderr)
    if failed := run.failures(skip_unreadable):
        print("  Fix these and run the same command again; only they are redone.", file=sys.stderr)
    elif mine and not totals(run.records(mine))["kept"]:
        print(f"  {run.stage.name} kept nothing.", file=sys.stderr)
        return FAILED_SHARDS
    return FAILED_SHARDS if failed else DONE


def by_count(counts: dict[str, int]) -> str:
    """``reason 3, other reason 1``, the most frequent first."""
    return ", ".join(f"{name} {n:,}" for name, n in sorted(counts.items(), key=lambda kv: (-kv[1], kv[0])))


def _few(names: Iterable[str], number: int = 5) -> str:
    names = list(names)
    more = f" and {len(names) - number:,} more" if len(names) > number else ""
    return ", ".join(names[:number]) + more
