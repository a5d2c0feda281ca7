#!/usr/bin/env python
"""Every method of the paper that needs no pretrained tower, on the shape world, over several seeds.

Two budgets: the same number of optimizer steps for all (the paper's), and the same encoder work: as
many steps as encode the images and captions that TripletCLIP's steps encode. Runs that are done are
not repeated, so the command can be stopped and given again. Writes OUTPUT/results/*.json, and the
page, plot and csv with --page.

  python tools/reproduce_shapes.py --output repro --steps 150 --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import shape_runs
from demo import COMMON
from shape_runs import Run

from open_clip_triplet.tripletdata import shapes

#: row of the paper -> (flags, images and captions encoded per sample)
ROWS = {
    "LaCLIP": (("--loss", "clip"), 2),
    "TripletCLIP": (("--loss", "triplet"), 4),
    "NegCLIP++": (("--loss", "negclip"), 3),
    "NegImage": (("--loss", "negimage"), 3),
    "LaCLIP+HN": (("--loss", "clip-hn"), 4),
    "NegCLIP": (("--loss", "negclip", "--neg-captions", "4"), 6),
    "CyCLIP": (("--loss", "cyclip"), 2),
    "CyCLIP+TripletLoss": (("--loss", "cyclip-triplet"), 4),
}


def plan(steps: int, seeds: list[int]) -> list[Run]:
    """All runs, the equal-steps table first; a row whose steps are the same in both budgets runs once."""
    runs = [Run(label, seed, steps, flags) for seed in seeds for label, (flags, _) in ROWS.items()]
    for seed in seeds:
        for label, (flags, encoded) in ROWS.items():
            if encoded != ROWS["TripletCLIP"][1]:
                runs.append(Run(label, seed, equal_work_steps(steps, encoded), flags))
    return runs


def equal_work_steps(steps: int, encoded: int) -> int:
    """Steps after which as much was encoded as by ``steps`` of TripletCLIP."""
    return round(steps * ROWS["TripletCLIP"][1] / encoded)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=Path, default=Path("repro"), help="folder for everything (%(default)s)")
    add("--steps", type=int, default=150, help="optimizer steps of the first budget (%(default)s)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of training (%(default)s)")
    args = parser.parse_args(argv)
    shapes.build(
        args.output / "shards", samples=20_000, val_samples=2_000, shards=8, world="single",
        image_size=32, seed=0, workers=2,
    )
    runs = plan(args.steps, args.seeds)
    for number, run in enumerate(runs, 1):
        print(f"[{number}/{len(runs)}] {run.name}", flush=True)
        shape_runs.execute(run, args.output, COMMON, keep_checkpoint=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
