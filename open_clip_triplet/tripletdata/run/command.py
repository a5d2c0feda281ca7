"""The end that every command shares: plan, dry run, run, report, exit status."""

from __future__ import annotations

from open_clip_triplet.tripletdata.run import options
from open_clip_triplet.tripletdata.run.estimate import print_plan
from open_clip_triplet.tripletdata.run.plan import plan_tasks
from open_clip_triplet.tripletdata.run.runner import report, run_stage


def run_command(module, args) -> int:
    """Run the one stage of ``module`` (its ``make_stage(args, images=...)``) as the options ask.

    Returns:
        The exit status of the command.
    """
    tasks = plan_tasks(args.input, options.table(args), args.samples_per_shard)
    stage = module.make_stage(args, images=not args.text_only)
    if args.dry_run:
        return print_plan(args, tasks, [stage])
    engine = options.engine(args, cpu=not stage.uses_gpu)
    return report(run_stage(stage, tasks, args.output, engine, quiet=args.quiet))
