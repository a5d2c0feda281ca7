"""The plugin's own command-line flags. Every other flag goes to OpenCLIP's parser untouched."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import logging
import os
import sys
from collections.abc import Iterator

from open_clip_triplet import command
from open_clip_triplet.errors import UsageError
from open_clip_triplet.evaluation.checkpoints.training import start_from
from open_clip_triplet.files import is_remote
from open_clip_triplet.losses import METHODS, add_loss_arguments, check_supported, find_method
from open_clip_triplet.losses.options import above_zero, dashed, fraction
from open_clip_triplet.shards import expand_shards, normalise_ranges

#: OpenCLIP's flags that the paired pipeline cannot follow, and why: refused where they are given
REFUSED = {
    "length_bucketing": "every caption has the model's context length",
    "text_pad_multiple": "every caption has the model's context length",
    "bucket_prefetch_pools": "there is no --length-bucketing",
    "use_naflex": "images are of one size",
    "naflex_num_train_image_tokens": "images are of one size",
    "horovod": "ranks find each other through torch.distributed",
}
#: flags of ours that change how a run goes and not what it trains: no warning where a resume changes them
RUNTIME_ONLY = (
    "image_decoder", "data_streams", "max_bad_fraction", "total_steps", "model_config", "loss_chunk_size",
    "eval_benchmarks", "eval_data_root", "eval_allow_partial",
)


def method_name(text: str) -> str:
    """argparse type of ``--loss``: a method, an installed or own loss, or an error that names the nearest."""
    if ":" in text and "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return find_method(text).name
    except UsageError as error:
        near = difflib.get_close_matches(text, METHODS, n=1)
        raise argparse.ArgumentTypeError(f"{error}{f'; did you mean {near[0]!r}?' if near else ''}") from error


def build_parser() -> argparse.ArgumentParser:
    """Parser of the plugin's flags, for ``parse_known_args``."""
    parser = argparse.ArgumentParser(
        prog="triplet-train",
        description="OpenCLIP training with TripletCLIP and its baselines on paired shards.",
        epilog="Every other flag is OpenCLIP's; --help lists them after these.",
        add_help=False,
        allow_abbrev=False,
    )
    command.add_arguments(parser.add_argument_group("command"), parser.prog)
    group = parser.add_argument_group("methods")
    group.add_argument(
        "--loss", type=method_name, default="clip", metavar="METHOD",
        help="training method (default clip, which is stock OpenCLIP): "
        + "; ".join(f"{name}: {method.summary}" for name, method in METHODS.items())
        + "; package.module:Class, or a name that an installed package offers: a loss of your own",
    )
    group.add_argument(
        "--neg-captions", type=above_zero(int), default=1, metavar="K",
        help="hard negative captions read per sample (default 1; negclip in the paper: 4)",
    )
    add_loss_arguments(parser)
    add_data_arguments(parser)
    group = parser.add_argument_group("training")
    group.add_argument(
        "--total-steps", type=above_zero(int), metavar="S",
        help="train exactly S optimizer steps, whatever the data's size; with --epochs E in E epochs of equal "
        "length, without it in epochs of one pass",
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


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the paired pipeline."""
    group = parser.add_argument_group("paired data")
    group.add_argument(
        "--image-decoder", choices=("auto", "pil", "fast"), default="auto",
        help="pil: OpenCLIP's own transform, to the bit. fast: the same crops from libjpeg-turbo, uint8 to "
        "the device. auto (default): fast for a GPU where it can do all of --aug-cfg, else pil; the log says "
        "which.",
    )
    group.add_argument(
        "--same-crop", action="store_true",
        help="give the positive and the negative image of a sample the same random crop",
    )
    group.add_argument(
        "--caption-sampling", choices=("first", "random"), default="first",
        help="first: txt and neg.txt. random: one of the captions and neg_captions in json, "
        "drawn anew each pass by seed and key.",
    )
    group.add_argument(
        "--data-streams", type=above_zero(int), metavar="P",
        help="data streams that every global batch draws on (default: processes x --workers, or the "
        "checkpoint's); with the same P a run has the same batches on any number of processes and workers",
    )
    group.add_argument(
        "--data-stage", action="append", default=[], metavar="MODULE:FUNCTION",
        help="a stage of your own between shuffling and decoding: maps an iterator of samples to an iterator; "
        "may be repeated",
    )
    group.add_argument(
        "--max-bad-fraction", type=fraction, default=0.5, metavar="F",
        help="stop when more than this part of a pass cannot be used (default 0.5)",
    )


def uses_paired_pipeline(args) -> bool:
    """Whether training data comes through our pipeline; otherwise it is stock OpenCLIP's.

    ``--loss clip`` without a flag of ours is stock, step for step. ``--total-steps`` is one of ours, so that
    an equal budget means the same batches for every method.
    """
    return args.loss != "clip" or bool(args.own_data_flags or args.total_steps)


@contextlib.contextmanager
def suggesting(argv: list[str]) -> Iterator[None]:
    """Where OpenCLIP's parser refuses the flags it is given: is one of them nearly one of ours?"""
    try:
        yield
    except SystemExit as error:
        own = [flag for action in build_parser()._actions for flag in action.option_strings]
        for flag in (word.split("=")[0] for word in argv if word.startswith("--")):
            if error.code and (near := difflib.get_close_matches(flag, own, n=1, cutoff=0.8)):
                print(f"{flag}: did you mean {near[0]}?", file=sys.stderr)
        raise


def parse_own(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split ``argv`` into the plugin's namespace and what is left for OpenCLIP."""
    own, rest = build_parser().parse_known_args(argv)
    own.own_meaning = sorted(set(vars(own)) - set(RUNTIME_ONLY))
    own.epochs_given = any(word.split("=")[0] == "--epochs" for word in rest)
    defaults = argparse.ArgumentParser()
    add_data_arguments(defaults)
    data_flags = vars(defaults.parse_args([])).items()
    own.own_data_flags = [dashed(name) for name, value in data_flags if getattr(own, name) != value]
    return own, rest


def check(args) -> None:
    """Refuse combinations that cannot work, before anything is loaded.

    Raises:
        UsageError: says what is wrong and what to do instead.
    """
    check_supported(args)
    start_from(args)
    for path in args.model_config:
        if not os.path.exists(path):
            raise UsageError(f"--model-config {path}: no such file or folder")
    if args.total_steps and args.epochs_given and args.epochs > args.total_steps:
        raise UsageError(f"--epochs {args.epochs} is more than --total-steps {args.total_steps}: an epoch needs a step")
    if args.eval_benchmarks:
        _check_benchmarks(args)
    if args.train_data:
        args.train_data = normalise_ranges(args.train_data)
    if args.val_data:
        args.val_data = normalise_ranges(args.val_data)
        _check_validation_shards(args)
    if args.train_data and is_webdataset(args.train_data, args):
        if uses_paired_pipeline(args):
            _check_pipeline(args)
    elif (args.loss != "clip" or args.own_data_flags) and (args.train_data or args.dataset_type == "synthetic"):
        own = f"--loss {args.loss} trains on" if args.loss != "clip" else f"{args.own_data_flags[0]} is for"
        raise UsageError(
            f"{own} paired webdataset shards, but --train-data is {args.train_data!r} "
            f"(--dataset-type {args.dataset_type}). Build shards with triplet-shards, or use --loss clip alone."
        )


def _check_validation_shards(args) -> None:
    """Hours before the first validation: is the data there? One missing shard costs only itself."""
    shards = expand_shards(args.val_data) if is_webdataset(args.val_data, args) else [args.val_data]
    missing = [path for path in shards if not is_remote(path) and not os.path.exists(path)]
    if len(missing) == len(shards):
        raise UsageError(f"--val-data {args.val_data}: there is no {missing[0]}")
    if missing:
        logging.warning(
            f"--val-data: {len(missing)} of {len(shards)} shards are missing, and left out: {missing[0]}"
            + (" and others." if len(missing) > 1 else ".")
        )


def _check_pipeline(args) -> None:
    """Refuse OpenCLIP's data flags that the paired pipeline cannot follow."""
    for name, why in REFUSED.items():
        if getattr(args, name, None):
            raise UsageError(
                f"{dashed(name)} does nothing in the paired pipeline: {why}. Leave it out, or use "
                "--loss clip without --total-steps and data flags of open_clip_triplet."
            )
    if args.same_crop and not find_method(args.loss).reads_neg_images:
        raise UsageError(f"--same-crop is for losses that read negative images, which --loss {args.loss} does not")
    if getattr(args, "json_text_key_probs", None) and not getattr(args, "json_text_key", None):
        raise UsageError("--json-text-key-probs needs --json-text-key")
    if getattr(args, "json_text_key", None) and args.caption_sampling == "random":
        raise UsageError("--caption-sampling random draws from json's captions: leave out --json-text-key, or draw "
                         "among several keys with --json-text-key-probs")
    from open_clip_triplet.data import load_stage

    for stage in args.data_stage:
        load_stage(stage)


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


def is_webdataset(data: str, args) -> bool:
    """Whether OpenCLIP reads data of this name as shards."""
    if args.dataset_type == "auto":
        return data.rsplit(".", 1)[-1] == "tar"
    return args.dataset_type == "webdataset"
