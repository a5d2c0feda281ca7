#!/usr/bin/env python
"""Ablations of TripletCLIP on the shape world: one change at a time, one csv and one plot.

What is changed: the weight of the negative pairs' term, negative images in the captions' denominators,
and the number of negative captions. Where negatives come from (rules, a language model, mined) and
frozen towers are rows of examples/flickr8k.sh; the filter is examples/recipes/tripletclip_plus.sh.
Runs that are done are kept.

  python tools/sweep.py --output repro --steps 300 --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import shape_page
import shape_runs
from demo import COMMON
from open_clip_triplet.shards import write_text_durably
from reproduce_shapes import build_shards
from shape_runs import Run

TRIPLET = ("--loss", "triplet")
ABLATIONS = {
    "TripletCLIP": TRIPLET,
    "second term x0.5": (*TRIPLET, "--neg-weight", "0.5"),
    "second term x2": (*TRIPLET, "--neg-weight", "2"),
    "negative images for captions too": (*TRIPLET, "--neg-images-in-text-denominator"),
    "2 negative captions": (*TRIPLET, "--neg-captions", "2"),
    "4 negative captions": (*TRIPLET, "--neg-captions", "4"),
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=Path, default=Path("repro"), help="folder of the reproduction (%(default)s)")
    add("--steps", type=int, default=300, help="optimizer steps (%(default)s)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of training (%(default)s)")
    args = parser.parse_args(argv)
    build_shards(args.output)
    results = [
        shape_runs.execute(Run(label, seed, args.steps, flags), args.output, COMMON, keep_checkpoint=False)
        for seed in args.seeds
        for label, flags in ABLATIONS.items()
    ]
    write_text_durably(args.output / "sweep.csv", shape_page.table_csv(results))
    groups = {label: [r for r in results if r["label"] == label] for label in ABLATIONS}
    (args.output / "sweep.png").write_bytes(shape_page.figure({f"{args.steps} steps": groups}))
    for label, runs in groups.items():
        value, low, high = shape_page.percent(*shape_page.mean_interval(shape_page.item_means(runs)))
        print(f"{label:34} group {value} [{low}, {high}]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
