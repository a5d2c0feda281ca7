"""``triplet-evaluate``: run benchmarks on checkpoints, report the paper's tables, look at the data."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from open_clip_triplet.command import add_arguments as add_common_arguments
from open_clip_triplet.command import command_line
from open_clip_triplet.errors import DataError, TripletError
from open_clip_triplet.evaluation.benchmarks import PAPER_SUITE, RETENTION, SUITES, get, names, suite
from open_clip_triplet.evaluation.checkpoints.command import add_arguments as add_convert_arguments

#: OpenCLIP's, as ``open_clip_train`` takes them
PRECISIONS = ("fp32", "amp", "amp_bf16", "amp_bfloat16", "bf16", "fp16", "pure_bf16", "pure_fp16")
EXAMPLES = """examples:
  triplet-evaluate data --data-root data
  triplet-evaluate run --model ViT-B-32 --pretrained clip=logs/clip/checkpoints/epoch_9.pt \\
      triplet=logs/triplet/checkpoints/epoch_9.pt --suite paper --data-root data --output results
  triplet-evaluate report results --format html --baseline clip --output report.html
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
    parser.add_argument("--model", default="ViT-B-32", help="OpenCLIP's model name (default: ViT-B-32)")
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
    run.add_argument(
        "--pretrained",
        nargs="+",
        required=True,
        metavar="[NAME=]PATH_OR_TAG",
        help="checkpoints, Hugging Face folders or OpenCLIP's tags; NAME labels the results",
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
    command = {"run": _run, "report": _report, "data": _data, "convert": _convert}[args.command]
    try:
        return command(args)
    except BrokenPipeError:
        return 1
    except (TripletError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder that cannot be written to
        print(f"error: {error.filename or 'writing'}: {error.strerror or error}", file=sys.stderr)
        return 2


def _specs(args) -> list:
    from open_clip_triplet.evaluation.checkpoints.load import CheckpointSpec

    many = args.pretrained if isinstance(args.pretrained, list) else [args.pretrained]
    specs = [
        CheckpointSpec.parse(
            text,
            model=Path(args.model_config).stem if args.model_config else args.model,
            model_config=args.model_config,
            precision=args.precision,
            force_quick_gelu=args.force_quick_gelu,
            force_image_size=args.force_image_size,
        )
        for text in many
    ]
    labels = [spec.label for spec in specs]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ValueError(
            f"two checkpoints are called {', '.join(twice)}; name them: --pretrained a=PATH b=PATH"
        )
    return specs


def _chosen(args) -> list:
    if getattr(args, "suite", None):
        return [get(name) for name in suite(args.suite)]
    return (
        [get(name.strip()) for name in args.benchmarks.split(",")]
        if args.benchmarks
        else list(map(get, names()))
    )


def _run(args) -> int:
    from open_clip_triplet.evaluation import console
    from open_clip_triplet.evaluation.result_files import safe_name
    from open_clip_triplet.evaluation.run import identify_all, run_checkpoint, start

    specs, benchmarks = _specs(args), _chosen(args)
    session = start(args)
    scored = False
    for spec, facts in zip(specs, identify_all(session, specs), strict=True):
        evaluation = run_checkpoint(
            session, spec, benchmarks, facts, show=lambda result: print(console.result_line(result), flush=True)
        )
        scored |= any(s["items"] for r in evaluation.results.values() for s in r["subsets"].values())
        if session.rank == 0:
            place = session.output / safe_name(spec.label)
            print(console.last_line(spec.label, evaluation.encoded, place), flush=True)
            for why in evaluation.skipped.values():
                print(f"skipped {why.splitlines()[0].removesuffix(' Expected:')}", file=sys.stderr)
    if not scored:
        raise DataError(
            "no benchmark had anything to score; `triplet-evaluate data` says what is expected where"
        )
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
