"""How alike positive and hard negative are to an encoder, per modality (the paper's Figures 4 and 5).

For comparison: how alike two positives of different samples are. Overlap is the share of two distributions
that is common to both (0: apart, 1: the same). For encoders of both modalities, the set's difficulty as
well: text, image and group score (Tables 1 and 9).
"""

from __future__ import annotations

import itertools

import numpy as np

from open_clip_triplet.errors import ShardError, UsageError
from open_clip_triplet.evaluation.metrics import wilson_interval
from open_clip_triplet.evaluation.tasks import pair_outcome
from open_clip_triplet.inspect.encoders import choose_device, make_encoder
from open_clip_triplet.inspect.pairs import COLUMNS, count_left_out, similarities
from open_clip_triplet.inspect.report import COLOURS, Report, Table, add_report_arguments, conclude
from open_clip_triplet.inspect.samples import (
    add_shard_arguments,
    check_sample,
    find_shards,
    read_view_samples,
    set_name,
)

EXAMPLES = """encoders, [LABEL=]KIND:MODEL[:WEIGHTS]:
  openclip:ViT-B-32:laion2b_s34b_b79k     any checkpoint or tag of OpenCLIP's
  timm:vit_small_patch14_dinov2.lvd142m   any vision model of timm's; WEIGHTS: a file instead of its own
  sentence:thenlper/gte-large             any text model or folder of sentence-transformers

examples:
  triplet-inspect similarity triplets/ --sample 5000 --output similarity --encoder \\
      clip=openclip:ViT-B-32-quickgelu:openai dino=timm:vit_small_patch14_dinov2.lvd142m \\
      gte=sentence:thenlper/gte-large
"""
EDGES = np.linspace(-1, 1, 101)
MODALITIES = ("image", "text")


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Overlapping coefficient of two samples of cosine similarities, over bins of 0.02; NaN for none.

    >>> overlap(np.array([0.1, 0.5]), np.array([0.5, 0.9]))
    0.5
    """
    if not len(a) or not len(b):
        return float("nan")
    shares = [np.histogram(np.clip(v, -1, 1), EDGES)[0] / len(v) for v in (a, b)]
    return float(np.minimum(*shares).sum())


def make_report(found: dict[str, np.ndarray], title: str) -> Report:
    """Tables and plots of :func:`pairs.similarities` [n, 8] by encoder label."""
    report = Report("similarity", title)
    columns = ["pairs", "mean", "deviation", "5%", "median", "95%", "mean with another", "overlap with another"]
    for modality in MODALITIES:
        known = {label: _known(values, modality) for label, values in found.items()}
        known = {label: values for label, values in known.items() if len(values)}
        if not known:
            continue
        others = {label: _known(found[label], f"{modality} of another") for label in known}
        rows = []
        for label, values in known.items():
            other = others[label]
            low, middle, high = (float(q) for q in np.quantile(values, (0.05, 0.5, 0.95)))
            rows.append([label, len(values), float(values.mean()), float(values.std()), low, middle, high,
                         float(other.mean()) if len(other) else None, _number(overlap(values, other))])
        what = {"image": "images", "text": "captions"}[modality]
        report.tables.append(Table(f"cosine of positive and negative {what}", columns, rows))
        report.plots[what] = _draw(known, others, what)
        pairs = [[f"{a} and {b}", overlap(known[a], known[b])] for a, b in itertools.combinations(known, 2)]
        if pairs:
            report.tables.append(Table(f"overlap of encoders, {what}", ["overlap"], pairs))
    if difficulty := [row for label, values in found.items() if (row := _difficulty(label, values))]:
        names = [f"{name} score, %" for name in ("text", "image", "group")]
        columns = ["samples", *names, "group from", "group to"]
        note = "95% Wilson interval; a tie counts as wrong."
        report.tables.append(Table("difficulty", columns, difficulty, note))
    report.values["similarities"] = {
        label: {c: _histogram(_known(values, c)) for c in COLUMNS[4:] if len(_known(values, c))}
        for label, values in found.items()
    }
    return report


def _known(values: np.ndarray, column: str) -> np.ndarray:
    found = values[:, COLUMNS.index(column)]
    return found[~np.isnan(found)]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value


def _histogram(values: np.ndarray) -> dict:
    counts = np.histogram(np.clip(values, -1, 1), EDGES)[0]
    return {"low": -1, "width": 0.02, "counts": counts.tolist()}


def _difficulty(label: str, values: np.ndarray) -> list | None:
    whole = values[~np.isnan(values[:, :6]).any(axis=1), :6]
    if not len(whole):
        return None
    right = pair_outcome(whole).right
    group = wilson_interval(int(right["group"].sum()), len(whole))
    scores = [100 * float(right[name].mean()) for name in ("text", "image", "group")]
    return [label, len(whole), *scores, *(100 * limit for limit in group)]


def _draw(known: dict[str, np.ndarray], others: dict[str, np.ndarray], what: str):
    """``known``: similarity of positive and negative by encoder; ``others``: of two different samples."""

    def draw(axes) -> None:
        low = min(values.min() for values in (*known.values(), *others.values()) if len(values))
        edges = EDGES[np.floor(min(low, 0) * 50) / 50 - 1e-9 <= EDGES]
        for colour, (label, values) in zip(itertools.cycle(COLOURS), known.items()):
            counts, _ = np.histogram(np.clip(values, -1, 1), edges)
            axes.stairs(counts / len(values), edges, fill=True, alpha=0.18, color=colour)
            named = f"{label}, mean {values.mean():.2f}"
            axes.stairs(counts / len(values), edges, color=colour, linewidth=1.5, label=named)
            if len(others[label]):
                counts, _ = np.histogram(np.clip(others[label], -1, 1), edges)
                axes.stairs(counts / len(others[label]), edges, color=colour, linewidth=1, linestyle="--")
        axes.plot([], [], color="#666", linewidth=1, linestyle="--", label="positives of two samples")
        axes.set_xlabel(f"cosine similarity of positive and negative {what}")
        axes.set_ylabel("share of samples")
        axes.legend(frameon=False)

    return draw


def add_arguments(parser) -> None:
    add_shard_arguments(parser)
    parser.add_argument("--encoder", nargs="+", required=True, metavar="NAME", help="encoders to compare, see below")
    parser.add_argument("--model-config", metavar="FILE", help="config of an OpenCLIP model that OpenCLIP lacks")
    parser.add_argument("--batch-size", type=int, default=64, help="samples per batch (default 64)")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    add_report_arguments(parser)


def run(args) -> int:
    check_sample(args)
    if args.batch_size < 1:
        raise UsageError(f"--batch-size {args.batch_size}: must be at least 1")
    shards, device = find_shards(args.shards), choose_device(args.device)
    encoders = [make_encoder(text, device, args.model_config) for text in args.encoder]
    labels = [encoder.label for encoder in encoders]
    if len(set(labels)) < len(labels):
        raise UsageError("two encoders have one label; name them: --encoder a=KIND:MODEL b=KIND:MODEL")
    found, notes = {}, []
    for encoder in encoders:
        samples = read_view_samples(shards, sample=args.sample, seed=args.seed, images=encoder.images is not None)
        _, values = similarities(samples, encoder, args.batch_size, quiet=False)
        found[encoder.label] = values
        left_out = count_left_out(values, encoder)
        notes += [f"{encoder.label}: {n:,} samples have no {name} pair" for name, n in left_out.items() if n]
    report = make_report(found, set_name(args.shards))
    report.intro = "; ".join(notes)
    if not report.tables:
        raise ShardError(f"{args.shards[0]}: nothing to compare ({report.intro})")
    return conclude(report, args)
