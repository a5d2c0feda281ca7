"""``triplet-evaluate``: run benchmarks on checkpoints, report the paper's tables, look at the data."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from open_clip_triplet.command import add_arguments as add_common_arguments
from open_clip_triplet.command import command_line
from open_clip_triplet.errors import DataError, TripletError, UsageError
from open_clip_triplet.evaluation.benchmarks import PAPER_SUITE, RETENTION, SUITES, get, names, suite
from open_clip_triplet.evaluation.checkpoints.command import add_arguments as add_convert_arguments

#: OpenCLIP's, as ``open_clip_train`` takes them
PRECISIONS = ("fp32", "amp", "amp_bf16", "amp_bfloat16", "bf16", "fp16", "pure_bf16", "pure_fp16")
EXAMPLES = """examples:
  triplet-evaluate data --data-root data
  triplet-evaluate run --model ViT-B-32 --pretrained clip=logs/clip/checkpoints/epoch_9.pt \\
      triplet=logs/triplet/checkpoints/epoch_9.pt --suite paper --data-root data --output results
  triplet-evaluate report results --format html --baseline clip --reference --output report.html
  torchrun --nproc_per_node 4 -m open_clip_triplet.evaluation.cli run ...    # encoding shared by 4 GPUs
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line, subcommands and all."""
    parser = argparse.ArgumentParser(
        prog="triplet-evaluate",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_common_arguments(parser, parser.prog)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_run(commands)
    _add_report(commands)
    overview = commands.add_parser("list", help="benchmarks at a glance: items, size, licence, found or not")
    overview.add_argument("--data-root", metavar="DIR", default="data", help="folder with the data (default: data)")
    data = commands.add_parser("data", help="what each benchmark expects, and what was found")
    data.add_argument(
        "--data-root", metavar="DIR", default="data", help="folder with the data (default: data)"
    )
    data.add_argument("--benchmarks", metavar="NAMES", help=f"comma-separated, of: {', '.join(names())}")
    data.add_argument("--download", metavar="NAMES", help="fetch the freely licensed annotations of these")
    convert = commands.add_parser("convert", help="write a checkpoint in another layout, or to the hub")
    _add_model(convert)
    add_convert_arguments(convert)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", help="OpenCLIP's model name (default: what the checkpoint's run was given, else ViT-B-32)"
    )
    parser.add_argument(
        "--model-config",
        metavar="FILE",
        help="config of a model OpenCLIP does not know; the file's stem is the model's name",
    )
    parser.add_argument(
        "--precision", default="fp32", choices=PRECISIONS, metavar="NAME", help="as OpenCLIP's (default: fp32)"
    )
    parser.add_argument("--force-quick-gelu", action="store_true", help="as OpenCLIP's")
    parser.add_argument("--force-image-size", type=int, metavar="PIXELS", help="as OpenCLIP's")


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, found {text!r}")
    return int(text)


def _add_run(commands) -> None:
    run = commands.add_parser("run", help="run benchmarks on one or several checkpoints")
    _add_model(run)
    checkpoints = run.add_mutually_exclusive_group(required=True)
    checkpoints.add_argument(
        "--pretrained",
        nargs="+",
        metavar="[NAME=]PATH_OR_TAG",
        help="checkpoints, Hugging Face folders or repositories, OpenCLIP's tags; NAME labels the results",
    )
    checkpoints.add_argument(
        "--watch",
        metavar="LOGS",
        help="evaluate each epoch_N.pt of the runs in this folder as it appears, and draw OUTPUT/curve.svg; "
        "ends when the runs do",
    )
    run.add_argument(
        "--watch-idle", type=float, metavar="MINUTES", help="end when no checkpoint came for so long"
    )
    run.add_argument(
        "--watch-poll", type=float, default=30, metavar="SECONDS", help="between two looks (default: 30)"
    )
    which = run.add_mutually_exclusive_group(required=True)
    which.add_argument("--benchmarks", metavar="NAMES", help=f"comma-separated, of: {', '.join(names())}")
    which.add_argument(
        "--suite",
        choices=SUITES,
        help=f"paper: {', '.join(PAPER_SUITE)}; composition: all but {', '.join(RETENTION)}",
    )
    run.add_argument(
        "--data-root", metavar="DIR", default="data", help="folder with the data (default: data)"
    )
    run.add_argument("--output", metavar="DIR", default="results", help="where results go (default: results)")
    run.add_argument("--store", metavar="DIR", help="where embeddings are kept (default: OUTPUT/.embeddings)")
    run.add_argument("--batch-size", type=_positive, default=64, help="images or captions (default: 64)")
    run.add_argument(
        "--limit", type=_positive, metavar="N", help="first N items of each subset alone, to try things out"
    )
    run.add_argument("--device", help="default: cuda where there is one, else cpu")
    run.add_argument(
        "--allow-partial",
        action="store_true",
        help="score what data there is; such results are labelled partial everywhere",
    )
    run.add_argument("--quiet", action="store_true", help="no progress bars")


def _add_report(commands) -> None:
    report = commands.add_parser("report", help="the paper's tables from results, beside the paper's values")
    report.add_argument("results", nargs="+", metavar="PATH", help="result files or folders")
    report.add_argument("--format", choices=["md", "csv", "latex", "html"], default="md")
    report.add_argument(
        "--baseline", metavar="NAME", help="checkpoint that gains and tests are against (default: the first)"
    )
    report.add_argument(
        "--reference",
        nargs="?",
        const="",
        metavar="TEXT",
        help="published values of known CLIPs beside ours: the usual ones, those that contain TEXT, or 'all'",
    )
    report.add_argument(
        "--coverage",
        metavar="CSV",
        help="the paper's Figure 3: a file with the columns checkpoint,method,concepts",
    )
    report.add_argument("--output", metavar="FILE", help="default: standard output")


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    args = build_parser().parse_args(command_line("triplet-evaluate", argv, subcommand=True))
    command = {"run": _run, "report": _report, "data": _data, "list": _list, "convert": _convert}[args.command]
    try:
        return command(args)
    except KeyboardInterrupt:
        print("interrupted; what is encoded and scored so far is kept, and the same command goes on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    except (TripletError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        print(f"error: {str(error).splitlines()[0]} Try a smaller --batch-size", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder that cannot be written to
        print(f"error: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 2


def _specs(args) -> list:
    from open_clip_triplet.evaluation.checkpoints.load import CheckpointSpec

    many = args.pretrained if isinstance(args.pretrained, list) else [args.pretrained]
    specs = [CheckpointSpec.parse(text, **_model_options(args)) for text in many]
    labels = [spec.label for spec in specs]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ValueError(
            f"two checkpoints are called {', '.join(twice)}; name them: --pretrained a=PATH b=PATH"
        )
    return specs


def _model_options(args) -> dict:
    return {
        "model": Path(args.model_config).stem if args.model_config else args.model,
        "model_config": args.model_config,
        "precision": args.precision,
        "force_quick_gelu": args.force_quick_gelu,
        "force_image_size": args.force_image_size,
    }


def _chosen(args) -> list:
    if getattr(args, "suite", None):
        return [get(name) for name in suite(args.suite)]
    chosen = names() if args.benchmarks is None else args.benchmarks.split(",")
    return [get(name) for name in dict.fromkeys(name.strip() for name in chosen)]


def _run(args) -> int:
    from open_clip_triplet.evaluation import console
    from open_clip_triplet.evaluation.run import identify_all, run_checkpoint, start

    if args.watch:
        return _watch(args)
    specs, benchmarks = _specs(args), _chosen(args)
    session = start(args)
    scored = False
    for spec, facts in zip(specs, identify_all(session, specs), strict=True):
        if session.rank == 0:
            console.show_start(session.label(spec), spec.model, spec.precision)
        evaluation = run_checkpoint(session, spec, benchmarks, facts, show=console.show_result)
        scored |= any(s["items"] for r in evaluation.results.values() for s in r["subsets"].values())
        if session.rank == 0:
            console.show_end(session.label(spec), evaluation, session.output)
    if not scored:
        raise DataError(
            "no benchmark had anything to score; `triplet-evaluate data` says what is expected where"
        )
    return 0


def _watch(args) -> int:
    from open_clip_triplet.evaluation import console
    from open_clip_triplet.evaluation.checkpoints.spec import CheckpointSpec, default_model
    from open_clip_triplet.evaluation.run import require_data, run_checkpoint, start
    from open_clip_triplet.evaluation.watch import Found, watch

    benchmarks, options = _chosen(args), _model_options(args)
    session = start(args)
    if session.world > 1:
        raise UsageError("--watch runs in one process; leave torchrun out")
    partial = args.allow_partial or args.limit is not None
    require_data([b.name for b in benchmarks], session.data_root, allow_partial=partial)

    def evaluate(found: Found) -> list[dict]:
        model = options["model"] or default_model(str(found.path))
        spec = CheckpointSpec(pretrained=str(found.path), name=found.label, **{**options, "model": model})
        console.show_start(session.label(spec), spec.model, spec.precision)
        evaluation = run_checkpoint(session, spec, benchmarks, show=console.show_result)
        console.show_end(session.label(spec), evaluation, session.output)
        return list(evaluation.results.values())

    idle = args.watch_idle * 60 if args.watch_idle is not None else None
    number = watch(Path(args.watch), evaluate, session.output, poll_s=args.watch_poll, idle_s=idle)
    print(f"evaluated {number} checkpoints; the curve is in {session.output / 'curve.svg'}", file=sys.stderr)
    return 0 if number else 2


def _list(args) -> int:
    from open_clip_triplet.evaluation.inventory import overview

    print(overview([get(name) for name in names()], Path(args.data_root)))
    return 0


def _report(args) -> int:
    from open_clip_triplet.evaluation.report.coverage import read_coverage
    from open_clip_triplet.evaluation.report.render import render
    from open_clip_triplet.evaluation.result_files import read_results
    from open_clip_triplet.files import write_text_durably

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


def _data(args) -> int:
    from open_clip_triplet.evaluation.inventory import describe, download

    if args.download:
        for name in args.download.split(","):
            download(name.strip(), Path(args.data_root))
    for benchmark in _chosen(args):
        print(describe(benchmark, Path(args.data_root)))
    return 0


def _convert(args) -> int:
    from open_clip_triplet.evaluation.checkpoints.command import run

    return run(args, _specs(args)[0])


if __name__ == "__main__":
    sys.exit(main())
