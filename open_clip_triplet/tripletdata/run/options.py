"""Options that every stage of ``triplet-shards`` shares, and what they mean."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from open_clip_triplet import files
from open_clip_triplet.tripletdata.run.cluster import Ray
from open_clip_triplet.tripletdata.run.engines import Local
from open_clip_triplet.tripletdata.run.estimate import rate
from open_clip_triplet.tripletdata.run.plan import plan_tasks
from open_clip_triplet.tripletdata.run.records import check_reasons
from open_clip_triplet.tripletdata.run.tables import Table
from open_clip_triplet.tripletdata.run.task import Policy, ShardTask


def _between(kind: type, low: float, high: float = math.inf) -> Callable[[str], Any]:
    """argparse type of a number from ``low`` to ``high``."""
    wanted = f"between {low} and {high}" if high < math.inf else f"{low} or more"

    def parse(text: str):
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value} is not {wanted}")
        return value

    parse.__name__ = kind.__name__
    return parse


#: argparse types: a count or size, one that may be 0
positive, natural = _between(int, 1), _between(int, 0)
#: argparse types: a share, a cosine similarity, the quality of a JPEG
share, cosine, quality = _between(float, 0, 1), _between(float, -1, 1), _between(int, 1, 100)


def part(text: str) -> tuple[int, int]:
    """argparse type of ``i/n``.

    >>> part("2/8")
    (2, 8)
    """
    try:
        index, count = map(int, text.split("/"))
    except ValueError:
        index = count = 0
    if not 1 <= index <= count:
        raise argparse.ArgumentTypeError(f"{text!r} is not i/n with i from 1 to n, such as 2/8")
    return index, count


def add_common(parser) -> None:
    """``--input``, ``--output``, how tables are read, what to do about faults, the engine."""
    group = parser.add_argument_group("input and output", "paths, or urls: s3://, gs://, hf://, ...")
    group.add_argument(
        "--input",
        nargs="+",
        required=True,
        help="folder of shards, pattern a/{000..999}.tar, pipe: command, csv/tsv/parquet/arrow of captions "
        "with image paths or bytes (Hugging Face datasets), or folder of those",
    )
    group.add_argument("--output", required=True, help="folder of the new shards; rerun to continue")
    group.add_argument(
        "--text-only", action="store_true",
        help="leave the input's images out of the new shards; a table needs none",
    )
    group.add_argument(
        "--image-key", default=Table.image_key, help="table column of images (default filepath, or image)"
    )
    group.add_argument(
        "--caption-key", default=Table.caption_key, help="table column of captions (default title, or caption)"
    )
    group.add_argument(
        "--image-root", default="", help="folder of relative image paths (default the table's)"
    )
    group.add_argument(
        "--samples-per-shard", type=positive, default=10_000, help="shard size for tables (default 10000)"
    )
    add_faults(parser)
    add_engine(parser)


def add_faults(parser) -> None:
    """What to do about damage and drops."""
    group = parser.add_argument_group("faults")
    group.add_argument(
        "--max-drop",
        type=share,
        default=0.5,
        metavar="SHARE",
        help="a shard that drops more of its samples fails, and is named (default 0.5; 1: never)",
    )
    group.add_argument(
        "--redo-dropped",
        nargs="?",
        const="",
        metavar="REASON,...",
        help="ask again for what finished shards dropped, all of it or for these reasons, and only for that",
    )
    group.add_argument(
        "--salvage", action="store_true", help="keep what a damaged shard holds before the damage, counted"
    )
    group.add_argument(
        "--skip-unreadable", action="store_true", help="go on, and end well, without shards that cannot be read"
    )


def policy(args) -> Policy:
    """What the fault options ask for.

    Raises:
        PipelineError: nothing was dropped for a reason of ``--redo-dropped``.
    """
    redo = args.redo_dropped
    reasons = None if redo is None else tuple(sorted(filter(None, map(str.strip, redo.split(",")))))
    if reasons:
        check_reasons(args.output, reasons)
    return Policy(args.max_drop, args.salvage, reasons)


def tasks(args) -> list[ShardTask]:
    """The tasks behind ``--input``, numbered as ``--output`` has them; see :func:`of_part`.

    Raises:
        PipelineError: nothing is found there.
    """
    files.require_scheme(args.output)
    found = plan_tasks(
        args.input, table(args), args.samples_per_shard, output=args.output, policy=policy(args)
    )
    return of_part(args, found)


def of_part(args, found: list[ShardTask]) -> list[ShardTask]:
    """The same tasks, those marked that another part of the run works."""
    if not args.part:
        return found
    index, count = args.part
    return [replace(task, mine=n % count == index - 1) for n, task in enumerate(found)]


def add_engine(parser) -> None:
    """Where the work is done."""
    group = parser.add_argument_group("engine")
    group.add_argument("--engine", choices=["local", "ray"], default="local", help="default local")
    group.add_argument(
        "--workers", type=natural, default=0, help="processes or Ray actors (default one per GPU, or one)"
    )
    group.add_argument("--ray-address", default="", help="cluster to join: auto, host:port, ray://host:port")
    group.add_argument("--ray-gpus", type=float, help="GPUs per Ray actor (default what a stage needs)")
    group.add_argument(
        "--part",
        type=part,
        metavar="I/N",
        help="work the I-th of N parts, beside other runs into the same folder (Slurm arrays)",
    )
    group.add_argument("--seed", type=int, default=0, help="base of every sample's seed (default 0)")
    group.add_argument("--dry-run", action="store_true", help="print plan, disk and GPU-hours, then stop")
    group.add_argument(
        "--rates",
        nargs="+",
        type=rate,
        default=[],
        metavar="STAGE=N",
        help="with --dry-run: samples per second of one GPU, captions=300 images=35, instead of the paper's",
    )
    group.add_argument(
        "--calibrate", action="store_true", help="with --dry-run: measure the rates here, on 64 samples"
    )
    group.add_argument("--quiet", action="store_true", help="no progress bar")


def engine(args, *, cpu: bool = False):
    """The engine that the arguments name. ``cpu``: the stage has no model to put on a GPU."""
    if args.engine == "ray":
        return Ray(args.ray_address, args.workers, args.ray_gpus, cpu)
    return Local(args.workers, cpu)


def table(args) -> Table:
    root = args.image_root and os.path.abspath(args.image_root)
    return Table(args.image_key, args.caption_key, root, args.text_only)
