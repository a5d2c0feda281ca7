"""Do negative images show what their captions say? Answers to yes-or-no questions (the paper's appendix F).

Reads shards that `triplet-shards verify --checks questions` has been through: json holds, under
verify.questions.items, each question with the answer expected of a faithful image (expected) and the one
given (answer; "" for neither yes nor no, which counts as wrong).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from open_clip_triplet.errors import ShardError, UsageError
from open_clip_triplet.evaluation.metrics import DRAWS
from open_clip_triplet.inspect.gallery import write_gallery
from open_clip_triplet.inspect.report import Report, Table, add_report_arguments, conclude
from open_clip_triplet.inspect.samples import (
    ViewSample,
    add_shard_arguments,
    check_sample,
    find_shards,
    questions,
    read_view_samples,
    set_name,
)

EXAMPLES = """examples:
  triplet-shards verify --input triplets/ --output verified/ --checks questions --action mark
  triplet-inspect faithfulness verified/ --output faithfulness --html worst.html
"""
#: what SDXL-Turbo's images reach in the paper, %
PAPER = 76.0
#: questions listed in a table; characters of one
LISTED, WIDTH = 20, 90


@dataclass
class Answers:
    """Questions of all samples. ``counts``: group -> (right, asked) of every sample with a question of it."""

    samples: int = 0
    unasked: int = 0
    counts: dict[str, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    asked: Counter = field(default_factory=Counter)
    wrong: Counter = field(default_factory=Counter)
    worst: list[tuple[float, int]] = field(default_factory=list)


def read_answers(samples: Iterable[ViewSample]) -> Answers:
    """The questions of every sample, grouped by expected answer and edit category."""
    found = Answers()
    for number, sample in enumerate(samples):
        items = questions(sample.details)
        if not items:
            found.unasked += 1
            continue
        found.samples += 1
        groups = defaultdict(list)
        for item in items:
            right = item["answer"] == item["expected"]
            for group in ("all", f"expected {item['expected']}", *filter(None, [sample.category])):
                groups[group].append(right)
            found.asked[item["question"]] += 1
            found.wrong[item["question"]] += not right
        for group, rights in groups.items():
            found.counts[group].append((sum(rights), len(rights)))
        found.worst.append((float(np.mean(groups["all"])), number))
    return found


def accuracy(counts: Sequence[tuple[int, int]], seed: int = 0) -> tuple[float, float, float]:
    """Share of questions answered as expected, with a 95% bootstrap interval over samples.

    The questions of one sample are about one image, so whole samples are drawn anew.

    Args:
        counts: (right, asked) of each sample.
    """
    right, asked = np.array(counts, float).T
    rng = np.random.default_rng(seed)
    drawn = np.empty(DRAWS)
    for number in range(DRAWS):
        chosen = rng.integers(0, len(right), len(right))
        drawn[number] = right[chosen].sum() / asked[chosen].sum()
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(right.sum() / asked.sum()), float(low), float(high)


def make_report(found: Answers, title: str) -> Report:
    """Accuracy by group, and the questions answered wrong most often."""
    report = Report("faithfulness", title)
    rows = []
    order = sorted(found.counts, key=lambda group: (group != "all", not group.startswith("expected"), group))
    for group in order:
        counts = found.counts[group]
        rows.append([group, len(counts), sum(n for _, n in counts), *(100 * value for value in accuracy(counts))])
    note = f"95% interval by drawing samples anew. The paper's SDXL-Turbo images: {PAPER:.0f}%. "
    note += f"Samples without a question: {found.unasked:,}."
    report.tables.append(Table("questions", ["samples", "questions", "as expected, %", "from", "to"], rows, note))
    worst = [
        [question[:WIDTH], found.asked[question], count]
        for question, count in sorted(found.wrong.items(), key=lambda item: (-item[1], item[0]))[:LISTED] if count
    ]
    if worst:
        report.tables.append(Table("answered otherwise most often", ["asked", "not as expected"], worst))
    shares = [share for share, _ in found.worst]
    report.plots["samples"] = _draw(shares)
    return report


def _draw(shares: Sequence[float]):
    def draw(axes) -> None:
        axes.hist(100 * np.array(shares), np.linspace(-5, 105, 12))
        axes.set_xlabel("questions about a sample answered as expected, %")
        axes.set_ylabel("samples")

    return draw


def add_arguments(parser) -> None:
    add_shard_arguments(parser)
    parser.add_argument("--html", metavar="FILE", help="a gallery, the worst samples first")
    parser.add_argument("--single-file", action="store_true", help="thumbnails inside the gallery's page")
    parser.add_argument("--most", type=int, default=500, metavar="N", help="samples in the gallery (default 500)")
    add_report_arguments(parser)


def run(args) -> int:
    check_sample(args)
    if args.most < 1:
        raise UsageError(f"--most {args.most}: must be at least 1")
    shards, how = find_shards(args.shards), {"sample": args.sample, "seed": args.seed}
    found = read_answers(read_view_samples(shards, **how, images=False))
    if not found.samples:
        raise ShardError(
            f"{args.shards[0]}: no sample has questions; run triplet-shards verify --checks questions first"
        )
    report = make_report(found, set_name(args.shards))
    if args.html:
        order = [number for share, number in sorted(found.worst) if share < 1][: args.most]
        chosen = set(order)
        samples = {n: s for n, s in enumerate(read_view_samples(shards, **how)) if n in chosen}
        write_gallery(
            (samples.pop(n) for n in order), args.html, title=f"{report.title}: least faithful first",
            single_file=args.single_file,
        )
    return conclude(report, args)
