#!/usr/bin/env python
"""Ablations of TripletCLIP on the shape world: one change at a time, one csv and one plot.

What is changed: the loss (weight of the negative pairs' term, negative images in the captions'
denominators, number of negative captions), where the negatives come from (drawn, mined, rules), the
filter by CLIP score where a quarter of the negative images is wrong, and frozen towers. Negatives of a
language model are a row of examples/flickr8k.sh. Runs that are done are kept.

  python tools/sweep.py --output repro --steps 300 --seeds 0 1 2
  python tools/sweep.py --output repro --only filter towers
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import world_page
import world_results
import world_runs
from open_clip_triplet.files import write_text_durably
from open_clip_triplet.make_shards import main as shards_main
from open_clip_triplet.shards import ShardWriter, read_meta, read_samples, rename_members, write_sizes
from reproduce import build_shards
from world_runs import COMMON, MODEL, MODEL_CONFIG, Run

CLIP, TRIPLET, NEGCLIP = ("--loss", "clip"), ("--loss", "triplet"), ("--loss", "negclip")
MINED, RULES, SPOILT = "shards-mined", "shards-rules", "shards-spoilt"
FIRST_STAGE = "first stage"


@dataclass(frozen=True)
class Ablation:
    """Flags, folder of training shards, and whether training goes on from the first stage's weights."""

    flags: tuple[str, ...] = TRIPLET
    shards: str = "shards/train"
    continues: bool = False


UNCHANGED = {"TripletCLIP": Ablation()}
ABLATIONS: dict[str, dict[str, Ablation]] = {
    "loss": UNCHANGED | {
        "second term x0.5": Ablation((*TRIPLET, "--neg-weight", "0.5")),
        "second term x2": Ablation((*TRIPLET, "--neg-weight", "2")),
        "negative images for captions too": Ablation((*TRIPLET, "--neg-images-in-text-denominator")),
        "2 negative captions": Ablation((*TRIPLET, "--neg-captions", "2")),
        "4 negative captions": Ablation((*TRIPLET, "--neg-captions", "4")),
    },
    "negatives": UNCHANGED | {
        "TripletCLIP, mined": Ablation(TRIPLET, MINED),
        "NegCLIP++": Ablation(NEGCLIP),
        "NegCLIP++, mined": Ablation(NEGCLIP, MINED),
        "NegCLIP++, by rules": Ablation(NEGCLIP, RULES),
    },
    "filter": UNCHANGED | {
        "1/4 wrong, unfiltered": Ablation(TRIPLET, SPOILT),
        "1/4 wrong, best 3/4 kept": Ablation(TRIPLET, f"{SPOILT}-15000"),
        "1/4 wrong, best 1/2 kept": Ablation(TRIPLET, f"{SPOILT}-10000"),
    },
    "towers": {
        "LaCLIP goes on": Ablation(CLIP, continues=True),
        "TripletCLIP, none frozen": Ablation(continues=True),
        # OpenCLIP never locks a timm tower's projection, which goes on learning
        "TripletCLIP, image trunk frozen": Ablation(
            (*TRIPLET, "--lock-image", "--lock-image-freeze-bn-stats"), continues=True
        ),
        "TripletCLIP, text tower frozen": Ablation(
            (*TRIPLET, "--lock-text", "--lock-text-freeze-layer-norm"), continues=True
        ),
    },
}
ABLATIONS_BY_LABEL = {label: ablation for group in ABLATIONS.values() for label, ablation in group.items()}
HEADINGS = {
    "loss": "The loss", "negatives": "Where negatives come from",
    "filter": "Wrong negative images, and the filter", "towers": "After as many steps of LaCLIP",
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=Path, default=Path("repro"), help="folder of the reproduction (%(default)s)")
    add("--steps", type=int, default=300, help="optimizer steps (%(default)s)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of training (%(default)s)")
    add("--only", nargs="+", choices=ABLATIONS, default=tuple(ABLATIONS),
        help="which ablations to train; all that are done are shown (all)")
    args = parser.parse_args(argv)
    build_shards(args.output)
    labels = dict.fromkeys(label for name in args.only for label in ABLATIONS[name])
    for seed in args.seeds:
        for label in labels:
            train(label, ABLATIONS_BY_LABEL[label], seed, args)
    write(args)
    return 0


def write(args: argparse.Namespace) -> None:
    """Csv and plot of what is done, in the output folder, and the scores on the screen."""
    runs = {label: done(label, args) for label in ABLATIONS_BY_LABEL}
    results = [result for group in runs.values() for result in group]
    write_text_durably(args.output / "sweep.csv", world_results.table_csv(results))
    panels = {}
    for name in ABLATIONS:
        groups = {label: runs[label] for label in ABLATIONS[name] if runs[label]}
        panels[f"{HEADINGS[name]} ({args.steps} steps)"] = groups
        print(f"\n{HEADINGS[name]}")
        for label, runs_of_label in groups.items():
            value, low, high = world_page.percent(*world_page.mean_interval(world_page.correct(runs_of_label)))
            seeds = " ".join(world_page.percent(*(run["group"] for run in runs_of_label)))
            print(f"  {label:34} group {value} [{low}, {high}]  each seed {seeds}")
    (args.output / "sweep.png").write_bytes(world_page.figure(panels))


def done(label: str, args: argparse.Namespace) -> list[dict]:
    """Results of an ablation, in order of seed."""
    runs = (Run(label, seed, args.steps, ()) for seed in args.seeds)
    return [found for run in runs if (found := world_runs.result_of(run, args.output))]


def train(label: str, ablation: Ablation, seed: int, args: argparse.Namespace) -> None:
    """One run, with what it starts from made where it is missing."""
    prepare(ablation.shards, args)
    flags = ablation.flags
    if ablation.continues:
        flags += ("--pretrained", str(first_stage(seed, args)))
    run = Run(label, seed, args.steps, flags, ablation.shards)
    world_runs.execute(run, args.output, COMMON["single"], keep_checkpoint=False)


def first_stage(seed: int, args: argparse.Namespace) -> Path:
    """Checkpoint of LaCLIP after as many steps."""
    run = Run(FIRST_STAGE, seed, args.steps, CLIP)
    if world_runs.last_checkpoint(run, args.output) is None:
        (args.output / "results" / f"{run.name}.json").unlink(missing_ok=True)
    world_runs.execute(run, args.output, COMMON["single"])
    return world_runs.last_checkpoint(run, args.output)


# --- shards ---------------------------------------------------------------------------------------


def prepare(shards: str, args: argparse.Namespace) -> None:
    """Make the shards of an ablation, by the command a user would give; it knows what is done.

    Filtered shards depend on the weights that scored them: another --steps into the same folder is refused.
    """
    target = args.output / shards
    source = f"{args.output}/shards/train/{{00000..00007}}.tar"
    if shards == MINED:
        make_shards("mine", "--input", source, "--output", str(target))
    elif shards == RULES:
        make_shards("build", "--input", source, "--output", str(target), "--backend", "rules", "--no-images")
    elif shards == SPOILT and not (target / "sizes.json").exists():
        spoil(args.output / "shards" / "train", target)
    elif shards.startswith(f"{SPOILT}-"):
        import open_clip

        prepare(SPOILT, args)
        open_clip.add_model_config(MODEL_CONFIG)
        make_shards(
            "filter", "--input", str(args.output / SPOILT), "--output", str(target), "--clip", MODEL,
            "--clip-pretrained", str(first_stage(0, args)), "--top-k", shards.rpartition("-")[2],
        )
        print(f"{target}: {wrong_images(target):,} of {wrong_images(args.output / SPOILT):,} wrong ones left")


def make_shards(*words: str) -> None:
    print(f"$ python tools/make_shards.py {' '.join(words)}", flush=True)
    if status := shards_main(list(words)):
        raise SystemExit(status)


def spoil(source: Path, target: Path) -> None:
    """Every fourth sample gets the negative image of the sample before, as if it had been drawn wrong."""
    sizes = {}
    for shard in sorted(source.glob("*.tar")):
        with ShardWriter(target / shard.name) as writer:
            for sample in _spoilt(read_samples(shard)):
                writer.write(sample)
        sizes[shard.name] = len(writer)
    write_sizes(target, sizes)


def _spoilt(samples: Iterator[dict]) -> Iterator[dict]:
    before = None
    for number, sample in enumerate(samples):
        name = next(name for name in sample if name.startswith("neg.") and name != "neg.txt")
        own = rename_members(sample)["neg_image"]
        if number % 4 == 3:
            sample[name] = before
            sample["json"] = {**read_meta(rename_members(sample)), "wrong": True}
        before = own
        yield sample


def wrong_images(shards: Path) -> int:
    """How many samples :func:`spoil` has given a wrong image."""
    samples = (sample for shard in sorted(shards.glob("*.tar")) for sample in read_samples(shard))
    return sum("wrong" in read_meta(rename_members(sample)) for sample in samples)


if __name__ == "__main__":
    sys.exit(main())
