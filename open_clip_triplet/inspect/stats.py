"""Numbers of a set of paired shards: sizes, lengths, edit categories, duplicates, overlap, concepts.

Overlap is looked for with --against: the evaluation sets' images (same bytes, and near ones by
perceptual hash) and captions (same words). With --output, duplicates.csv and overlap.csv list the samples
concerned; `triplet-shards filter --drop-list` takes either file.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from open_clip_triplet.errors import PipelineError, UsageError
from open_clip_triplet.files import join, write_text_durably
from open_clip_triplet.inspect.duplicates import (
    NEAR,
    clusters,
    near_pairs,
)
from open_clip_triplet.inspect.measure import Looked, look
from open_clip_triplet.inspect.overlap import EvaluationSet, read_evaluation_set
from open_clip_triplet.inspect.plots import draw_categories, draw_lengths, draw_resolution
from open_clip_triplet.inspect.report import Report, Table, add_report_arguments, conclude
from open_clip_triplet.inspect.samples import (
    add_shard_arguments,
    check_sample,
    find_shards,
    read_view_samples,
    set_name,
)

EXAMPLES = """examples:
  triplet-inspect stats triplets/ --output stats
  triplet-inspect stats triplets/ --against sugarcrepe=data/sugar-crepe coco=data/coco flickr=data/flickr30k
"""
QUANTILES = (0, 0.05, 0.5, 0.95, 1)


def make_report(looked: Looked, title: str, sets: Sequence[EvaluationSet] = (), near: int = NEAR) -> Report:
    """Tables, plots and the lists of samples concerned (``values``: ``duplicates``, ``overlap``)."""
    report = Report("stats", title, [_counts(looked), _distributions(looked)])
    if looked.categories:
        total = looked.categories.total()
        rows = [[name, count, count / total] for name, count in looked.categories.most_common()]
        report.tables.append(Table("edit category", ["negatives", "share"], rows))
        report.plots["categories"] = draw_categories(rows[:20])
    table, report.values["duplicates"] = _duplicates(looked, near)
    report.tables += [table, _own(looked)] if looked.own else [table]
    if sets:
        table, report.values["overlap"] = _overlap(looked, sets, near)
        report.tables.append(table)
    if any(looked.synsets.values()):
        report.tables.append(_concepts(looked))
    report.plots["lengths"] = draw_lengths(looked)
    if sizes := [p.size for p in looked.prints["image"] if p and p.size]:
        report.plots["resolution"] = draw_resolution(sizes)
    return report


def _counts(looked: Looked) -> Table:
    prints = looked.prints
    rows = [
        ["samples", len(looked.places)],
        ["shards", len({shard for _, shard in looked.places})],
        ["captions", sum(looked.positives)],
        ["negative captions", sum(looked.negatives)],
        ["samples with a negative caption", sum(n > 0 for n in looked.negatives)],
        ["samples with a negative image", sum(p is not None for p in prints["negative image"])],
    ]
    for name, found in prints.items():
        bad = sum(p is not None and p.size is None for p in found)
        rows.append([f"{name}s that cannot be decoded", bad])
    return Table("counts", ["number"], rows)


def _distributions(looked: Looked) -> Table:
    values = {**looked.words}
    for name, prints in looked.prints.items():
        for place, side in enumerate(("width", "height")):
            values[f"{name} {side}"] = [p.size[place] for p in prints if p and p.size]
    rows = [
        [name, *(_whole(float(v)) for v in (*np.quantile(found, QUANTILES), np.mean(found)))]
        for name, found in values.items() if found
    ]
    columns = ["least", "5%", "median", "95%", "most", "mean"]
    return Table("distribution", columns, rows)


def _whole(value: float) -> float | int:
    return int(value) if value == int(value) else value


def _duplicates(looked: Looked, near: int) -> tuple[Table, list[dict]]:
    rows, listed = [], []
    for name, prints in looked.prints.items():
        have = [n for n, p in enumerate(prints) if p]
        same = _repeats([p.digest for p in prints if p])
        seen = [n for n, p in enumerate(prints) if p and p.phash is not None]
        hashes = np.array([p.phash for p in prints if p and p.phash is not None], np.uint64)
        unique, places = np.unique(hashes, return_inverse=True)
        groups = clusters(len(unique), near_pairs(unique, bits=near))
        members = _members(places, len(unique), groups)
        repeats = sum(len(group) - 1 for group in members)
        rows.append([name, len(have), len(same), repeats, max(map(len, members), default=0)])
        if name == "image":
            listed = [
                {"key": looked.places[seen[n]][0], "shard": looked.places[seen[n]][1], "group": number}
                for number, group in enumerate(members) for n in group[1:]
            ]
    for name, captions in looked.captions.items():
        given = [text for text in captions if text]
        largest = Counter(given).most_common(1)
        rows.append([name, len(given), len(_repeats(given)), None, largest[0][1] if largest else 0])
    columns = ["looked at", "repeated exactly", f"repeated or near (≤ {near} bits)", "largest group"]
    note = "A repeat is a further copy of one that was there before; captions are compared without case and marks."
    return Table("duplicates", columns, rows, note), listed


def _repeats(items: Sequence) -> list[int]:
    seen: set = set()
    repeats = []
    for n, item in enumerate(items):
        if item in seen:
            repeats.append(n)
        seen.add(item)
    return repeats


def _members(places: np.ndarray, count: int, groups: list[list[int]]) -> list[list[int]]:
    """Groups of samples, from groups of distinct hashes and each sample's hash; all of at least two."""
    of_hash: list[list[int]] = [[] for _ in range(count)]
    for sample, place in enumerate(places.tolist()):
        of_hash[place].append(sample)
    grouped = {place for group in groups for place in group}
    alone = [[place] for place in range(count) if place not in grouped and len(of_hash[place]) > 1]
    found = [sorted(sample for place in group for sample in of_hash[place]) for group in [*groups, *alone]]
    return sorted(found, key=lambda group: (-len(group), group))


def _own(looked: Looked) -> Table:
    rows = [[f"same {name}", count] for name, count in looked.own.items()]
    return Table("negatives that equal their own positive", ["samples"], rows)


def _overlap(looked: Looked, sets: Sequence[EvaluationSet], near: int) -> tuple[Table, list[dict]]:
    rows, listed = [], []
    for found in sets:
        why: dict[int, set[str]] = {}
        for prints in looked.prints.values():
            for n, p in enumerate(prints):
                if p and p.digest in found.digests:
                    why.setdefault(n, set()).add("image")
            seen = [n for n, p in enumerate(prints) if p and p.phash is not None]
            hashes = np.array([p.phash for p in prints if p and p.phash is not None], np.uint64)
            for n in found.near(hashes, near):
                why.setdefault(seen[n], set()).add("near image")
        for captions in looked.captions.values():
            for n, text in enumerate(captions):
                if text and text in found.captions:
                    why.setdefault(n, set()).add("caption")
        counts = Counter(reason for reasons in why.values() for reason in reasons)
        rows.append([found.name, found.images, len(found.captions),
                     counts["image"], counts["near image"], counts["caption"], len(why)])
        listed += [
            {"key": looked.places[n][0], "shard": looked.places[n][1], "set": found.name, "shares": sorted(why[n])}
            for n in sorted(why)
        ]
    columns = ["its images", "its captions", "same image", f"near (≤ {near} bits)", "same caption", "samples in all"]
    return Table("overlap with", columns, rows), listed


def _concepts(looked: Looked) -> Table:
    sides = {**looked.synsets, "both": looked.synsets["captions"] + looked.synsets["negatives"]}
    rows = [[name, counts.total(), len(counts)] for name, counts in sides.items()]
    rows.append(["in captions and in negatives", None, len(looked.synsets["captions"] & looked.synsets["negatives"])])
    return Table("WordNet synsets", ["total", "unique"], rows)


# --- command --------------------------------------------------------------------------------------


def add_arguments(parser) -> None:
    add_shard_arguments(parser)
    parser.add_argument("--against", nargs="+", default=[], metavar="[NAME=]PATH",
                        help="evaluation sets to look for: folders or files of images, shards, annotations")
    parser.add_argument("--near", type=int, default=NEAR, metavar="BITS",
                        help=f"Hamming distance of perceptual hashes that counts as near (default {NEAR} of 64)")
    parser.add_argument("--text-only", action="store_true", help="leave the images unread")
    parser.add_argument("--wordnet", default="", metavar="DIR", help="folder of WordNet 3.0's data.noun")
    add_report_arguments(parser)


def run(args) -> int:
    check_sample(args)
    if not 0 <= args.near <= 64:
        raise UsageError(f"--near {args.near}: a distance of hashes of 64 bits, 0 to 64")
    shards = find_shards(args.shards)
    sets = [read_evaluation_set(text) for text in args.against]
    samples = read_view_samples(shards, sample=args.sample, seed=args.seed, images=not args.text_only)
    concepts, note = None, ""
    try:
        from open_clip_triplet.tripletdata.stages.concepts import Concepts

        concepts = Concepts(args.wordnet).of
    except PipelineError as error:
        note = f"WordNet synsets are not counted: {error}"
    report = make_report(look(samples, concepts), set_name(args.shards), sets, args.near)
    report.intro = note
    status = conclude(report, args)
    if args.output:
        for name in ("duplicates", "overlap"):
            if name in report.values:
                write_text_durably(join(args.output, f"{name}.csv"), drop_list(report.values[name]))
    return status


def drop_list(listed: Iterable[dict]) -> str:
    """Samples as the csv that ``triplet-shards filter --drop-list`` takes: key, mark, shard."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["key", "mark", "shard"])
    writer.writerows(dict.fromkeys((item["key"], "bad", item["shard"]) for item in listed))
    return text.getvalue()
