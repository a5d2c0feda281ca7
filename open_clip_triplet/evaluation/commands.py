"""What each command of ``triplet-evaluate`` does with its arguments; returns the exit status.

Heavy modules are imported by the command that needs them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from open_clip_triplet.errors import DataError, UsageError
from open_clip_triplet.evaluation.benchmarks import Benchmark, get, names, suite
from open_clip_triplet.evaluation.checkpoints.spec import CheckpointSpec


def _specs(args: argparse.Namespace) -> list[CheckpointSpec]:
    many = args.pretrained if isinstance(args.pretrained, list) else [args.pretrained]
    specs = [CheckpointSpec.parse(text, **_model_options(args)) for text in many]
    labels = [spec.label for spec in specs]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise UsageError(
            f"two checkpoints are called {', '.join(twice)}; name them: --pretrained a=PATH b=PATH"
        )
    return specs


def _model_options(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "model": Path(args.model_config).stem if args.model_config else args.model,
        "model_config": args.model_config,
        "precision": args.precision,
        "force_quick_gelu": args.force_quick_gelu,
        "force_image_size": args.force_image_size,
    }


def _chosen(args: argparse.Namespace) -> list[Benchmark]:
    if getattr(args, "suite", None):
        return [get(name) for name in suite(args.suite)]
    chosen = names() if args.benchmarks is None else args.benchmarks.split(",")
    return [get(name) for name in dict.fromkeys(name.strip() for name in chosen)]


def run(args: argparse.Namespace) -> int:
    from open_clip_triplet.evaluation import console
    from open_clip_triplet.evaluation.run import identify_all, run_checkpoint, start

    if args.watch:
        return _watch(args)
    specs, benchmarks = _specs(args), _chosen(args)
    session = start(args)
    scored = False
    for spec, facts in zip(specs, identify_all(session, specs), strict=True):
        if session.rank == 0:
            console.show_start(session.label(spec), spec)
        evaluation = run_checkpoint(session, spec, benchmarks, facts, show=console.show_result)
        scored |= any(s["items"] for r in evaluation.results.values() for s in r["subsets"].values())
        if session.rank == 0:
            console.show_end(session.label(spec), evaluation, session.output)
            if spec is specs[0]:  # the data is the same for all of them
                console.show_skipped(evaluation.skipped)
    if not scored:
        raise DataError(
            "no benchmark had anything to score; `triplet-evaluate data` says what is expected where"
        )
    return 0


def _watch(args: argparse.Namespace) -> int:
    from open_clip_triplet.evaluation import console
    from open_clip_triplet.evaluation.run import require_data, run_checkpoint, start
    from open_clip_triplet.evaluation.watch import Found, watch

    benchmarks, options = _chosen(args), _model_options(args)
    session = start(args)
    if session.world > 1:
        raise UsageError("--watch runs in one process; leave torchrun out")
    partial = args.allow_partial or args.limit is not None
    require_data([b.name for b in benchmarks], session.data_root, allow_partial=partial)

    def evaluate(found: Found) -> list[dict]:
        spec = CheckpointSpec.of_run(str(found.path), name=found.label, **options)
        console.show_start(session.label(spec), spec)
        evaluation = run_checkpoint(session, spec, benchmarks, show=console.show_result)
        console.show_end(session.label(spec), evaluation, session.output)
        return list(evaluation.results.values())

    idle = args.watch_idle * 60 if args.watch_idle is not None else None
    number = watch(Path(args.watch), evaluate, session.output, poll_s=args.watch_poll, idle_s=idle)
    curve = session.output / "curve.svg"
    where = f"; the curve is in {curve}" if curve.is_file() else ""
    print(f"evaluated {number} checkpoints{where}", file=sys.stderr)
    return 0 if number else 2


def list_benchmarks(args: argparse.Namespace) -> int:
    from open_clip_triplet.evaluation.inventory import overview

    print(overview([get(name) for name in names()], Path(args.data_root)))
    return 0


def report(args: argparse.Namespace) -> int:
    from open_clip_triplet.evaluation.report.coverage import read_coverage
    from open_clip_triplet.evaluation.report.render import render
    from open_clip_triplet.evaluation.result_files import read_results
    from open_clip_triplet.files import write_text_durably

    if args.output and Path(args.output).is_dir():
        raise UsageError(f"--output {args.output} is a folder; name a file")
    text = render(
        read_results(args.results),
        args.format,
        baseline=args.baseline,
        reference=args.reference,
        coverage=read_coverage(args.coverage) if args.coverage else (),
    )
    if args.output:
        write_text_durably(args.output, text)
        print(f"wrote {args.output}", file=sys.stderr)
    else:
        sys.stdout.write(text)
    return 0


def data(args: argparse.Namespace) -> int:
    from open_clip_triplet.evaluation.inventory import describe, download

    if args.download:
        for name in args.download.split(","):
            download(name.strip(), Path(args.data_root))
    for benchmark in _chosen(args):
        print(describe(benchmark, Path(args.data_root)))
    return 0


def convert(args: argparse.Namespace) -> int:
    from open_clip_triplet.evaluation.checkpoints import command

    return command.run(args, _specs(args)[0])
