#!/usr/bin/env python
"""Every method that needs no pretrained tower, on an embedded world, over several seeds.

Three budgets: the same number of optimizer steps for all (the paper's); the same encoder work, as many
steps as encode the images and captions that TripletCLIP's steps encode; the same number of image-caption
pairs. Runs that are done are not repeated, so the command can be stopped and given again. Writes
OUTPUT/results/*.json after each run, and WORLD.md, WORLD.png and WORLD.csv at the end (--page-only: from
the runs there are).

  python tools/reproduce.py --output repro --seeds 0 1 2
  python tools/reproduce.py --output repro --world single --budgets steps work
  python tools/reproduce.py --page-only --results examples/results/glyphs.csv --page examples/results
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import world_page
import world_results
import world_runs
from open_clip_triplet import make_shards
from open_clip_triplet.files import write_text_durably
from open_clip_triplet.tripletdata.worlds import shapes
from world_runs import COMMON, Run

MINED = "shards-mined"
#: one pass of 1,000 steps of 64; the shape world's older results are of 20,000
SAMPLES = {"glyphs": 64_000, "single": 20_000}


@dataclass(frozen=True)
class Row:
    """A method: its flags, images and captions encoded per sample, image-caption pairs per sample."""

    flags: tuple[str, ...]
    encoded: int
    pairs: int
    shards: str = "shards/train"


_CLIP, _TRIPLET, _NEGCLIP = ("--loss", "clip"), ("--loss", "triplet"), ("--loss", "negclip")
ROWS = {
    "LaCLIP": Row(_CLIP, 2, 1),
    "TripletCLIP": Row(_TRIPLET, 4, 2),
    "NegCLIP++": Row(_NEGCLIP, 3, 1),
    "NegImage": Row(("--loss", "negimage"), 3, 1),
    "LaCLIP+HN": Row(("--loss", "clip-hn"), 4, 2, MINED),
    "drawn pairs as ordinary pairs": Row(("--loss", "clip-hn"), 4, 2),
    "NegCLIP": Row((*_NEGCLIP, "--neg-captions", "3"), 5, 1),
    "CyCLIP": Row(("--loss", "cyclip"), 2, 1),
    "CyCLIP+TripletLoss": Row(("--loss", "cyclip-triplet"), 4, 2),
    "TripletCLIP, own negatives": Row((*_TRIPLET, "--neg-scope", "own"), 4, 2),
    "TripletCLIP, adaptive margin": Row((*_TRIPLET, "--margin", "adaptive"), 4, 2),
    "TripletCLIP, focal term": Row((*_TRIPLET, "--hard-negative-weight", "0.5"), 4, 2),
    "TripletCLIP, every 2nd step plain": Row((*_TRIPLET, "--plain-every", "2"), 4, 2),
    "TripletCLIP, paraphrases": Row((*_TRIPLET, "--paraphrase-weight", "0.5"), 5, 2),
    "TripletCLIP, units": Row((*_TRIPLET, "--units", "2"), 8, 2),
    # what the teacher encodes, without a gradient, is not counted
    "TripletCLIP, moving teacher": Row((*_TRIPLET, "--teacher", "ema"), 4, 2),
}
BUDGETS = {"steps": "Equal steps: {steps} for all", "work": "Equal encoder work", "pairs": "Equal pairs"}


def plan(
    steps: int, seeds: Sequence[int], budgets: Sequence[str] = tuple(BUDGETS), methods: Sequence[str] = tuple(ROWS)
) -> list[Run]:
    """All runs, the equal-steps table first; a row whose steps are the same in two budgets runs once."""
    runs = {}
    for budget in budgets:
        for seed in seeds:
            for label in methods:
                row = ROWS[label]
                run = Run(label, seed, budget_steps(budget, label, steps), row.flags, row.shards)
                runs[run.name] = run
    return list(runs.values())


def budget_steps(budget: str, label: str, steps: int) -> int:
    """Steps of a method under a budget, where TripletCLIP takes ``steps``."""
    row, reference = ROWS[label], ROWS["TripletCLIP"]
    if budget == "work":
        return round(steps * reference.encoded / row.encoded)
    return round(steps * reference.pairs / row.pairs) if budget == "pairs" else steps


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=Path, default=Path("repro"), help="folder for everything (%(default)s)")
    add("--world", choices=COMMON, default="glyphs", help="of triplet-shards shapes (%(default)s)")
    add("--steps", type=int, default=1000, help="optimizer steps of the first budget (%(default)s)")
    add("--samples", type=int, default=0, help="training samples (one pass of the default --steps)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of training (%(default)s)")
    add("--budgets", nargs="+", choices=BUDGETS, default=tuple(BUDGETS), help="which tables (all)")
    add("--methods", nargs="+", choices=ROWS, default=tuple(ROWS), help="which rows (all)")
    add("--jobs", type=int, default=1, help="runs at a time; set OMP_NUM_THREADS too (%(default)s)")
    add("--page", type=Path, help="folder of the page, plot and csv (OUTPUT)")
    add("--page-only", action="store_true", help="train nothing: write the page from the results there are")
    add("--results", type=Path, help="a page's csv, whose runs the page is written from instead of OUTPUT's")
    add("--notes", type=Path, help="text to put under the tables")
    args = parser.parse_args(argv)
    if not args.page_only:
        train(args)
    write_page(args)
    return 0


def build_shards(output: Path, world: str = "single", samples: int = 0) -> None:
    """The shards that all runs share; nothing happens where they are there. samples: 0 for the world's own number."""
    shapes.build(
        output / "shards", samples=samples or SAMPLES[world], val_samples=2_000, shards=8, world=world, image_size=32,
        seed=0, workers=2,
    )


def mine_shards(output: Path) -> None:
    """LaCLIP+HN's shards: to every pair the nearest real pair by its caption; the drawn negatives are left."""
    plain = sorted(str(path) for path in (output / "shards" / "train").glob("*.tar"))
    if make_shards.main(["mine", "--input", *plain, "--output", str(output / MINED)]):
        raise SystemExit(f"mining into {output / MINED} failed")


def train(args: argparse.Namespace) -> None:
    """Do the runs that are not done."""
    build_shards(args.output, args.world, args.samples)
    runs = plan(args.steps, args.seeds, args.budgets, args.methods)
    if any(run.shards == MINED for run in runs) and not (args.output / MINED / "sizes.json").exists():
        mine_shards(args.output)
    execute = functools.partial(
        world_runs.execute, output=args.output, common=COMMON[args.world], keep_checkpoint=False
    )
    if args.jobs == 1:
        for number, run in enumerate(runs, 1):
            print(f"[{number}/{len(runs)}] {run.name}", flush=True)
            execute(run)
        return
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
        try:
            for number, _ in enumerate(pool.map(execute, runs), 1):
                print(f"[{number}/{len(runs)}] done", flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)  # what has begun is waited for: it can be kept
            raise


def results_of(planned: Sequence[Run], args: argparse.Namespace) -> dict[str, dict | None]:
    """{name of a run: its result, or None where it is not done}; from --results where that is given."""
    if not args.results:
        return {run.name: world_runs.result_of(run, args.output) for run in planned}
    found = {(r["label"], r["seed"], r["steps"]): r for r in world_results.read_csv(args.results)}
    return {run.name: found.get((run.label, run.seed, run.steps)) for run in planned}


def same_seeds(heading: str, groups: dict[str, list[dict]]) -> dict[str, dict[str, list[dict]]]:
    """{heading: {method: runs}}: tables in which every method has the same seeds.

    One table where all have the same; else one of the seeds that all have, and one of the methods with the most.
    """
    seeds = {label: [run["seed"] for run in runs] for label, runs in groups.items()}
    common = [seed for seed in max(seeds.values(), key=len, default=[]) if all(seed in own for own in seeds.values())]
    most = max(seeds.values(), key=len, default=[])
    tables = {}
    for chosen in (common, most) if common != most else (common,):
        words = ", ".join(map(str, chosen))
        tables[f"{heading}, {'seed' if len(chosen) == 1 else 'seeds'} {words}"] = {
            label: [run for run in runs if run["seed"] in chosen]
            for label, runs in groups.items()
            if set(chosen) <= set(seeds[label])
        }
    return tables if seeds else {}


def write_page(args: argparse.Namespace) -> None:
    """Page, plot and csv of the planned runs that are done; says which are not."""
    planned = plan(args.steps, args.seeds, args.budgets, args.methods)
    done = results_of(planned, args)
    budgets = {
        BUDGETS[budget].format(steps=args.steps): [
            result
            for run in planned
            if (result := done[run.name]) and run.steps == budget_steps(budget, run.label, args.steps)
        ]
        for budget in args.budgets
    }
    results = [result for result in done.values() if result]
    if not results:
        place = args.results or f"{args.output}/results"
        raise SystemExit(f"no results in {place}: run without --page-only first")
    command = f"python tools/reproduce.py --world {args.world} --steps {args.steps} --seeds " + " ".join(
        map(str, args.seeds)
    )
    missing = [run.name for run in planned if not done[run.name]]
    notes = args.notes.read_text(encoding="utf-8") if args.notes else ""
    if missing:
        notes = f"{len(missing)} of {len(planned)} runs are not done: {', '.join(missing)}.\n\n{notes}"
    folder, name = args.page or args.output, args.world
    folder.mkdir(parents=True, exist_ok=True)
    groups = {
        heading: runs
        for budget, chosen in budgets.items()
        for heading, runs in same_seeds(budget, world_page.by_label(chosen, ROWS)).items()
    }
    (folder / f"{name}.png").write_bytes(world_page.figure(groups, world_page.HEADLINE[name]))
    write_text_durably(folder / f"{name}.csv", world_results.table_csv(results))
    write_text_durably(folder / f"{name}.md", world_page.page(name, results, groups, command, notes))
    print(f"{folder}/{name}.md: {len(results)} of {len(planned)} runs")


if __name__ == "__main__":
    sys.exit(main())
