"""What a checkpoint gets wrong: samples by edit category, with both similarities; or where two differ.

A sample is right where both images prefer their own caption and both captions their own image (group
score); in a set without negative images, where the image prefers its caption (text score). Ties are wrong.
Samples that `triplet-evaluate run --benchmarks tripletdata` leaves out are left out, and counted by reason.
The gallery (--html) has the samples that are wrong, the widest misses first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from open_clip_triplet.errors import ShardError, UsageError
from open_clip_triplet.evaluation.benchmarks.tripletdata import whole_sample
from open_clip_triplet.evaluation.metrics import mcnemar, wilson_interval
from open_clip_triplet.inspect.encoders import choose_device, openclip_encoder
from open_clip_triplet.inspect.gallery import write_gallery
from open_clip_triplet.inspect.pairs import similarities
from open_clip_triplet.inspect.report import Report, Table, add_report_arguments, conclude
from open_clip_triplet.inspect.samples import (
    ViewSample,
    add_shard_arguments,
    check_sample,
    find_shards,
    read_view_samples,
    set_name,
)

EXAMPLES = """examples:
  triplet-inspect model logs/triplet/checkpoints/epoch_9.pt triplets/val --model ViT-B-32 --html wrong.html
  triplet-inspect model clip=logs/clip/checkpoints/epoch_9.pt triplets/val --model ViT-B-32 --html differ.html \\
      --against triplet=logs/triplet/checkpoints/epoch_9.pt
"""
OUTCOMES = ("right", "wrong caption", "wrong image", "both wrong")
CAPTIONS_ONLY = "without neg_image"


class Judged:
    """A checkpoint's judgement of n samples.

    Args:
        values: [n, 8] of :func:`pairs.similarities`; s10 and s11 NaN where there is no negative image.
    """

    def __init__(self, label: str, values: np.ndarray):
        self.label = label
        s00, s01, s10, s11 = self.scores = values[:, :4].T
        with np.errstate(invalid="ignore"):
            self.text_margin = np.fmin(s00 - s01, s11 - s10)
            self.image_margin = np.fmin(s00 - s10, s11 - s01)
        self.margin = np.fmin(self.text_margin, self.image_margin)
        self.text, self.right = self.text_margin > 0, self.margin > 0
        self.has_images = ~np.isnan(self.image_margin)
        self.image = self.has_images & (self.image_margin > 0)
        self.known = ~np.isnan(s00) & ~np.isnan(s01)

    def outcome(self, number: int) -> str:
        text, image = self.text[number], self.image[number] or not self.has_images[number]
        return OUTCOMES[(not text) + 2 * (not image)]


def why_left_out(sample: dict) -> str:
    """Why the benchmark leaves a sample out, by its members alone; empty where it does not."""
    try:
        whole_sample(sample)
    except ShardError as error:
        return str(error)
    return ""


def leave_out(samples: Sequence[ViewSample], values: np.ndarray) -> Counter:
    """Make the rows of ``values`` NaN that are not scored, and count them by reason.

    One sample that is whole makes the set one of pairs; else a caption and a negative caption are enough.
    """
    paired = any(not sample.left_out for sample in samples)
    reasons: Counter[str] = Counter()
    for sample, row in zip(samples, values):
        reason = "" if not paired and sample.left_out == CAPTIONS_ONLY else sample.left_out
        if not reason and np.isnan(row[: 4 if paired else 2]).any():
            reason = "image damaged"
        if reason:
            reasons[reason] += 1
            row[:] = np.nan
    return reasons


def make_report(judged: Sequence[Judged], categories: Sequence[str], title: str) -> Report:
    """Scores by category; with two checkpoints, where they differ.

    Args:
        categories: edit category of each sample; empty where none is given.
    """
    known = np.logical_and.reduce([one.known for one in judged])
    groups = {"all": known}
    for name, _ in Counter(np.array(categories, object)[known].tolist()).most_common():
        if name:
            groups[name] = known & (np.array(categories, object) == name)
    report = Report("model", title)
    columns = ["samples", "text score, %", "image score, %", "right, %", "from", "to", "median margin"]
    for one in judged:
        rows = [[name, *_scores(one, chosen)] for name, chosen in groups.items()]
        report.tables.append(Table(one.label, columns, rows))
    score = "group score" if judged[0].has_images.any() else "text score, as there are no negative images"
    report.tables[-1].note = f"Right is the {score}, with its 95% Wilson interval; ties are wrong."
    if len(judged) == 2:
        report.tables.append(_differences(judged[0], judged[1], groups))
    report.plots["categories"] = _draw(judged, groups)
    return report


def _scores(one: Judged, chosen: np.ndarray) -> list:
    n, images = int(chosen.sum()), chosen & one.has_images
    low, high = wilson_interval(int(one.right[chosen].sum()), n)
    image = 100 * float(one.image[images].mean()) if images.any() else None
    return [n, 100 * float(one.text[chosen].mean()), image, 100 * float(one.right[chosen].mean()),
            100 * low, 100 * high, float(np.median(one.margin[chosen]))]


def _differences(first: Judged, second: Judged, groups: dict[str, np.ndarray]) -> Table:
    rows = []
    for name, chosen in groups.items():
        a, b = first.right[chosen], second.right[chosen]
        only = int((a & ~b).sum()), int((b & ~a).sum())
        rows.append([name, int((a & b).sum()), *only, int((~a & ~b).sum()), mcnemar(*only)])
    columns = ["both right", f"only {first.label}", f"only {second.label}", "both wrong", "p (McNemar)"]
    return Table("right where", columns, rows)


def _draw(judged: Sequence[Judged], groups: dict[str, np.ndarray]):
    def draw(axes) -> None:
        height = 0.8 / len(judged)
        for place, one in enumerate(judged):
            rows = [_scores(one, chosen) for chosen in groups.values()]
            y = np.arange(len(rows)) + place * height
            right, low, high = (np.array([row[place] for row in rows]) for place in (3, 4, 5))
            spread = np.maximum([right - low, high - right], 0)  # rounding
            axes.barh(y, right, height * 0.92, xerr=spread, label=one.label,
                      error_kw={"elinewidth": 1, "ecolor": "#444"})
        axes.set_yticks(np.arange(len(groups)) + 0.4 - height / 2, [name.replace("_", " ") for name in groups])
        axes.set_ylim(max(len(groups), 3) - 0.1, -0.5)  # few groups do not make thick bars
        axes.set_xlim(0, 100)
        axes.set_xlabel("samples right, % (95% interval)")
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))

    return draw


def gallery_samples(
    shards: Sequence[str], judged: Sequence[Judged], most: int, **how
) -> Iterator[ViewSample]:
    """The samples to look at, widest misses first; of two checkpoints, those that only one gets right first.

    Args:
        most: samples at most. how: as ``read_view_samples``; the same as the samples judged.
    """
    known = np.logical_and.reduce([one.known for one in judged])
    margin = np.fmin.reduce([one.margin for one in judged])
    wrong = known & ~np.logical_and.reduce([one.right for one in judged])
    differ = np.logical_xor.reduce([one.right for one in judged]) if len(judged) == 2 else np.zeros_like(wrong)
    order = [n for n in np.lexsort((margin, ~differ)).tolist() if wrong[n]][:most]
    chosen = set(order)
    found = {n: s for n, s in enumerate(read_view_samples(shards, **how)) if n in chosen}
    for number in order:
        sample = found.pop(number)
        sample.facets["outcome"] = _outcome(judged, number)
        for one in judged:
            rows = one.scores[:, number].reshape(2, 2).tolist()
            sample.similarities[one.label] = [row for row in rows if not np.isnan(row).any()]
            name = f"{one.label} margin" if len(judged) > 1 else "margin"
            sample.scores[name] = float(one.margin[number])
        yield sample


def _outcome(judged: Sequence[Judged], number: int) -> str:
    if len(judged) == 1:
        return judged[0].outcome(number)
    right = [one.label for one in judged if one.right[number]]
    return f"only {right[0]} right" if right else "both wrong"


def add_arguments(parser) -> None:
    parser.add_argument("checkpoint", metavar="[NAME=]CHECKPOINT", help="a checkpoint, folder or tag of OpenCLIP's")
    add_shard_arguments(parser)
    parser.add_argument("--against", metavar="[NAME=]CHECKPOINT", help="a second checkpoint of the same model")
    parser.add_argument("--model", help="OpenCLIP's model name (default: what the checkpoint's run was given, else "
                        "ViT-B-32)")
    parser.add_argument("--model-config", metavar="FILE", help="config of a model that OpenCLIP lacks")
    parser.add_argument("--precision", default="fp32", help="as OpenCLIP's (default fp32)")
    parser.add_argument("--batch-size", type=int, default=64, help="samples per batch (default 64)")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument("--html", metavar="FILE", help="a gallery of the samples that are wrong")
    parser.add_argument("--single-file", action="store_true", help="thumbnails inside the gallery's page")
    parser.add_argument("--most", type=int, default=500, metavar="N", help="samples in the gallery (default 500)")
    add_report_arguments(parser)


def run(args) -> int:
    check_sample(args)
    if args.batch_size < 1 or args.most < 1:
        raise UsageError("--batch-size and --most must be at least 1")
    shards, device = find_shards(args.shards), choose_device(args.device)
    how: dict[str, Any] = {"sample": args.sample, "seed": args.seed, "check": why_left_out}
    judged: list[Judged] = []
    samples: list[ViewSample] = []
    left_out: Counter[str] = Counter()
    for pretrained in filter(None, (args.checkpoint, args.against)):
        encoder = openclip_encoder(
            pretrained, device, model=args.model, config=args.model_config, precision=args.precision
        )
        samples, values = similarities(read_view_samples(shards, **how), encoder, args.batch_size, quiet=False)
        left_out = leave_out(samples, values)
        judged.append(Judged(encoder.label, values))
    if judged[0].label == judged[-1].label and len(judged) == 2:
        raise UsageError("both checkpoints have one label; name them: a=CHECKPOINT ... --against b=CHECKPOINT")
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.most_common())
    if not judged[0].known.any():
        raise ShardError(f"{args.shards[0]}: no sample has an image, a caption and a negative caption ({reasons})")
    title = f"{' and '.join(one.label for one in judged)} on {set_name(args.shards)}"
    report = make_report(judged, [sample.category for sample in samples], title)
    if reasons:
        report.intro = f"left out: {reasons}"
    if args.html:
        found = gallery_samples(shards, judged, args.most, **how)
        write_gallery(found, args.html, title=title, single_file=args.single_file)
    return conclude(report, args)
