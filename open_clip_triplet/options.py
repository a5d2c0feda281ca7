"""The plugin's own command-line flags. Every other flag goes to OpenCLIP's parser untouched."""

from __future__ import annotations

import argparse
import difflib
import os

from open_clip_triplet.data import add_data_arguments
from open_clip_triplet.errors import UsageError
from open_clip_triplet.evaluation.checkpoints.training import start_from
from open_clip_triplet.losses import METHODS, add_loss_arguments, check_supported
from open_clip_triplet.shards import normalise_ranges


def method_name(text: str) -> str:
    """argparse type of ``--loss``: a known method, or an error that names the nearest one."""
    if text in METHODS:
        return text
    near = difflib.get_close_matches(text, METHODS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise argparse.ArgumentTypeError(f"unknown method {text!r}{hint} Known: {', '.join(METHODS)}")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def build_parser() -> argparse.ArgumentParser:
    """Parser of the plugin's flags, for ``parse_known_args``."""
    parser = argparse.ArgumentParser(
        prog="python -m open_clip_triplet.train",
        description="OpenCLIP training with TripletCLIP and its baselines on paired shards.",
        epilog="Every other flag is OpenCLIP's; --help lists them after these.",
        add_help=False,
        allow_abbrev=False,
    )
    group = parser.add_argument_group("command")
    group.add_argument("--version", action="store_true", help="print this package's version and OpenCLIP's")
    group.add_argument(
        "--config", metavar="FILE", help="yaml file of flags, ours and OpenCLIP's; the command line wins"
    )
    group = parser.add_argument_group("methods")
    group.add_argument(
        "--loss", type=method_name, default="clip", metavar="METHOD",
        help="training method (default clip, which is stock OpenCLIP): "
        + "; ".join(f"{name}: {method.summary}" for name, method in METHODS.items()),
    )
    group.add_argument(
        "--neg-captions", type=_positive, default=1, metavar="K",
        help="hard negative captions read per sample (default 1; negclip in the paper: 4)",
    )
    add_loss_arguments(parser)
    add_data_arguments(parser)
    group = parser.add_argument_group("training")
    group.add_argument(
        "--total-steps", type=_positive, metavar="S",
        help="stop after exactly S optimizer steps, whatever the data's size; replaces --epochs",
    )
    group.add_argument(
        "--save-every-n-steps", type=_positive, metavar="N",
        help="also save a checkpoint every N optimizer steps; --resume latest continues inside the epoch",
    )
    group.add_argument(
        "--decay-all", action="store_true",
        help="apply weight decay to every parameter, as the paper's released code does "
        "(OpenCLIP leaves out biases, gains and the temperature)",
    )
    group.add_argument(
        "--model-config", action="append", default=[], metavar="PATH",
        help="register an OpenCLIP model config file, or a folder of them, before --model is looked up",
    )
    group = parser.add_argument_group("validation")
    group.add_argument(
        "--eval-benchmarks", metavar="NAMES",
        help="benchmarks to run at OpenCLIP's validation frequency, e.g. sugarcrepe,winoground",
    )
    group.add_argument("--eval-data-root", metavar="DIR", help="where the benchmarks' data lies")
    group.add_argument(
        "--eval-allow-partial", action="store_true",
        help="run benchmarks on the part of their data that is there; their metrics are named -partial",
    )
    return parser


def uses_paired_pipeline(args) -> bool:
    """Whether training data comes through our pipeline; otherwise it is stock OpenCLIP's.

    ``--loss clip`` without a flag of ours is stock, step for step. Continuing inside an epoch needs our
    pipeline, because its order can be continued.
    """
    return args.loss != "clip" or bool(args.own_data_flags or args.save_every_n_steps or args.total_steps)


def parse_own(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split ``argv`` into the plugin's namespace and what is left for OpenCLIP."""
    own, rest = build_parser().parse_known_args(argv)
    defaults = argparse.ArgumentParser(add_help=False)
    add_data_arguments(defaults)
    own.own_data_flags = sorted(
        name for name, value in vars(defaults.parse_args([])).items() if getattr(own, name) != value
    )
    return own, rest


def check(args) -> None:
    """Refuse combinations that cannot work, before anything is loaded.

    Raises:
        UsageError: says what is wrong and what to do instead.
    """
    try:
        check_supported(args)
    except ValueError as error:
        raise UsageError(str(error)) from error
    start_from(args)
    for path in args.model_config:
        if not os.path.exists(path):
            raise UsageError(f"--model-config {path}: no such file or folder")
    if args.eval_benchmarks:
        _check_benchmarks(args)
    if args.train_data:
        args.train_data = normalise_ranges(args.train_data)
    if args.val_data:
        args.val_data = normalise_ranges(args.val_data)
    if args.loss == "clip":
        return
    _check_paired(args)


def _check_benchmarks(args) -> None:
    """Hours before the first validation: are the benchmarks known, and is their data there?"""
    from open_clip_triplet.evaluation import require_data

    if not args.eval_data_root:
        raise UsageError("--eval-benchmarks needs --eval-data-root DIR, the folder that holds their data.")
    try:
        names = args.eval_benchmarks.split(",")
        require_data(names, args.eval_data_root, allow_partial=args.eval_allow_partial)
    except (ValueError, OSError) as error:
        raise UsageError(f"--eval-benchmarks {args.eval_benchmarks}: {error}") from error


def _check_paired(args) -> None:
    """Refuse what a paired method cannot be combined with."""
    what = f"--loss {args.loss}"
    if args.train_data and not _is_webdataset(args):
        raise UsageError(
            f"{what} trains on paired webdataset shards, but --train-data is {args.train_data!r} "
            f"(--dataset-type {args.dataset_type}). Build shards with tools/make_shards.py, "
            "or use --loss clip."
        )
    if not args.train_data and args.dataset_type == "synthetic":
        raise UsageError(f"{what} cannot train on OpenCLIP's synthetic data set; give paired shards.")
    model = args.model.lower()
    for word in ("genlip", "genlap", "clap"):  # CoCa is refused by the loss
        if word in model:
            raise UsageError(f"{what} supports CLIP models (two towers, one loss), not {args.model}.")
    if args.distill_model is not None:
        raise UsageError(f"{what} cannot be combined with distillation; leave out --distill-model.")
    if args.local_loss and not args.gather_with_grad:
        raise UsageError(
            f"{what} with --local-loss needs --gather-with-grad: without it the features of other ranks "
            "carry no gradient, and the encoders get a wrong one. Add --gather-with-grad, or leave out "
            "--local-loss (exact as well)."
        )
    if getattr(args, "use_naflex", False):
        raise UsageError(f"{what} reads images of one size; leave out --use-naflex.")


def _is_webdataset(args) -> bool:
    if args.dataset_type == "auto":
        return args.train_data.rsplit(".", 1)[-1] == "tar"
    return args.dataset_type == "webdataset"
