"""``triplet-evaluate``: run benchmarks on checkpoints, report the paper's tables, look at the data."""

from __future__ import annotations

import argparse
import sys

from open_clip_triplet.command import add_arguments as add_common_arguments
from open_clip_triplet.command import command_line
from open_clip_triplet.errors import TripletError
from open_clip_triplet.evaluation import commands
from open_clip_triplet.evaluation.benchmarks import PAPER_SUITE, RETENTION, SUITES, names
from open_clip_triplet.evaluation.checkpoints.command import add_arguments as add_convert_arguments

#: OpenCLIP's, as ``open_clip_train`` takes them
PRECISIONS = ("fp32", "amp", "amp_bf16", "amp_bfloat16", "bf16", "fp16", "pure_bf16", "pure_fp16")
COMMANDS = {
    "run": commands.run,
    "report": commands.report,
    "list": commands.list_benchmarks,
    "data": commands.data,
    "convert": commands.convert,
}
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
    subparsers = parser.add_subparsers(dest="command", required=True)
    _add_run(subparsers)
    _add_report(subparsers)
    overview = subparsers.add_parser("list", help="benchmarks at a glance: items, size, licence, found or not")
    _add_data_root(overview)
    data = subparsers.add_parser("data", help="what each benchmark expects, and what was found")
    _add_data_root(data)
    data.add_argument("--benchmarks", metavar="NAMES", help=f"comma-separated, of: {', '.join(names())}")
    data.add_argument("--download", metavar="NAMES", help="fetch the freely licensed annotations of these")
    convert = subparsers.add_parser("convert", help="write a checkpoint in another layout, or to the hub")
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


def _add_data_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-root", metavar="DIR", default="data", help="folder with the data (default: data)")


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, found {text!r}")
    return int(text)


def _add_run(subparsers) -> None:
    run = subparsers.add_parser("run", help="run benchmarks on one or several checkpoints")
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
    _add_data_root(run)
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


def _add_report(subparsers) -> None:
    report = subparsers.add_parser("report", help="the paper's tables from results, beside the paper's values")
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
    try:
        return COMMANDS[args.command](args)
    except KeyboardInterrupt:
        print("interrupted; what is encoded and scored so far is kept, and the same command goes on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    except TripletError as error:
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


if __name__ == "__main__":
    sys.exit(main())
