"""Options that every stage of ``triplet-shards`` shares."""

from __future__ import annotations

import argparse
import os

from open_clip_triplet.tripletdata.run import engines
from open_clip_triplet.tripletdata.run.tables import Table


def positive(text: str) -> int:
    """argparse type of counts and sizes that cannot be 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def add_common(parser, *, output: bool = True) -> None:
    """``--input``, ``--output``, the engine and how tables are read."""
    group = parser.add_argument_group("input and output")
    group.add_argument(
        "--input",
        nargs="+",
        required=True,
        help="folder of shards, pattern a/{000..999}.tar, or csv/tsv/parquet of image paths and captions",
    )
    if output:
        group.add_argument("--output", required=True, help="folder of the new shards; rerun to continue")
    group.add_argument(
        "--text-only", action="store_true", help="leave the input's images out of the new shards"
    )
    group.add_argument(
        "--image-key", default="filepath", help="table column of image paths (default filepath)"
    )
    group.add_argument("--caption-key", default="title", help="table column of captions (default title)")
    group.add_argument(
        "--image-root", default="", help="folder of relative image paths (default the table's)"
    )
    group.add_argument(
        "--samples-per-shard", type=positive, default=10_000, help="shard size for tables (default 10000)"
    )
    add_engine(parser)


def add_engine(parser) -> None:
    """Where the work is done."""
    group = parser.add_argument_group("engine")
    group.add_argument("--engine", choices=["local", "ray"], default="local", help="default local")
    group.add_argument(
        "--workers", type=int, default=0, help="processes or Ray actors (default one per GPU, or one)"
    )
    group.add_argument("--ray-address", default="", help="cluster to join: auto, host:port, ray://host:port")
    group.add_argument("--ray-gpus", type=float, help="GPUs per Ray actor (default what a stage needs)")
    group.add_argument("--seed", type=int, default=0, help="base of every sample's seed (default 0)")
    group.add_argument("--dry-run", action="store_true", help="print plan, disk and GPU-hours, then stop")
    group.add_argument("--quiet", action="store_true", help="no progress bar")


def engine(args, *, cpu: bool = False):
    """The engine that the arguments name. ``cpu``: the stage has no model to put on a GPU."""
    if args.engine == "ray":
        return engines.Ray(args.ray_address, args.workers, args.ray_gpus, cpu)
    return engines.Local(args.workers, cpu)


def table(args) -> Table:
    return Table(args.image_key, args.caption_key, args.image_root and os.path.abspath(args.image_root))
