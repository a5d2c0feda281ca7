#!/usr/bin/env python
"""Every method of the paper that needs no pretrained tower, on the shape world, over several seeds.

Two budgets: the same number of optimizer steps for all (the paper's), and the same encoder work: as
many steps as encode the images and captions that TripletCLIP's steps encode. Runs that are done are
not repeated, so the command can be stopped and given again. Writes OUTPUT/results/*.json after each
run, and shapes.md, shapes.png and shapes.csv at the end (--page-only: from the runs there are).

  python tools/reproduce.py --output repro --steps 300 --seeds 0 1 2
  python tools/reproduce.py --output repro --page-only --page examples/results --notes notes.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import world_page
import world_runs
from demo import COMMON
from open_clip_triplet.files import write_text_durably
from open_clip_triplet.tripletdata.worlds import shapes
from world_runs import Run

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

BUDGETS = ("steps", "work")


def plan(
    steps: int, seeds: Sequence[int], budgets: Sequence[str] = BUDGETS, methods: Sequence[str] = tuple(ROWS)
) -> list[Run]:
    """All runs, the equal-steps table first; a row whose steps are the same in both budgets runs once."""
    runs = {}
    for budget in budgets:
        for seed in seeds:
            for label in methods:
                run = Run(label, seed, budget_steps(budget, label, steps), ROWS[label][0])
                runs[run.name] = run
    return list(runs.values())


def budget_steps(budget: str, label: str, steps: int) -> int:
    """Steps of a method under a budget, where TripletCLIP takes ``steps``."""
    return steps if budget == "steps" else equal_work_steps(steps, ROWS[label][1])


def equal_work_steps(steps: int, encoded: int) -> int:
    """Steps after which as much was encoded as by ``steps`` of TripletCLIP."""
    return round(steps * ROWS["TripletCLIP"][1] / encoded)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=Path, default=Path("repro"), help="folder for everything (%(default)s)")
    add("--steps", type=int, default=300, help="optimizer steps of the first budget (%(default)s)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of training (%(default)s)")
    add("--budgets", nargs="+", choices=BUDGETS, default=BUDGETS, help="which tables (both)")
    add("--methods", nargs="+", choices=ROWS, default=tuple(ROWS), help="which rows (all)")
    add("--page", type=Path, help="folder of the page, plot and csv (OUTPUT)")
    add("--page-only", action="store_true", help="train nothing: write the page from the results there are")
    add("--notes", type=Path, help="text to put under the tables")
    args = parser.parse_args(argv)
    if not args.page_only:
        train(args)
    write_page(args)
    return 0


def build_shards(output: Path) -> None:
    """The world that all runs share; nothing happens where it is there."""
    shapes.build(
        output / "shards", samples=20_000, val_samples=2_000, shards=8, world="single",
        image_size=32, seed=0, workers=2,
    )


def train(args: argparse.Namespace) -> None:
    """Do the runs that are not done."""
    build_shards(args.output)
    runs = plan(args.steps, args.seeds, args.budgets, args.methods)
    for number, run in enumerate(runs, 1):
        print(f"[{number}/{len(runs)}] {run.name}", flush=True)
        world_runs.execute(run, args.output, COMMON, keep_checkpoint=False)


def write_page(args: argparse.Namespace) -> None:
    """Page, plot and csv of the planned runs that are done; says how many are not."""
    budgets = {}
    headings = {"steps": f"Equal steps: {args.steps} for all", "work": "Equal encoder work"}
    planned = plan(args.steps, args.seeds, args.budgets, args.methods)
    done = {run.name: world_runs.result_of(run, args.output) for run in planned}
    for budget in args.budgets:
        budgets[headings[budget]] = [
            result
            for run in planned
            if (result := done[run.name]) and run.steps == budget_steps(budget, run.label, args.steps)
        ]
    results = [result for result in done.values() if result]
    if not results:
        raise SystemExit(f"no results in {args.output}/results: run without --page-only first")
    command = f"python tools/reproduce.py --steps {args.steps}"
    for flag in ("seeds", "budgets", "methods"):
        command += f" --{flag} {' '.join(map(str, getattr(args, flag)))}"
    missing = len(planned) - len(results)
    notes = args.notes.read_text(encoding="utf-8") if args.notes else ""
    if missing:
        notes = f"{missing} of {len(planned)} runs are not done; the tables average those that are.\n\n{notes}"
    folder = args.page or args.output
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "shapes.png").write_bytes(world_page.figure(
        {heading: world_page.by_label(chosen) for heading, chosen in budgets.items()}
    ))
    write_text_durably(folder / "shapes.csv", world_page.table_csv(results))
    write_text_durably(folder / "shapes.md", world_page.page(results, budgets, command, notes))
    print(f"{folder}/shapes.md: {len(results)} of {len(planned)} runs")


if __name__ == "__main__":
    sys.exit(main())
