"""Concept coverage: WordNet synsets of captions, and subsets that grow in unique synsets (Table 2, Figure 3).

The concepts of a caption are the synsets of its nouns, verbs, adjectives and adverbs, all senses of each
word as in the paper (``--senses first``: the first of each part of speech). The most frequent concepts are
counted by what each word most often stands for. Subsets are prefixes of one greedy order: each next sample
is the one that adds most synsets not yet covered, so that every subset holds the smaller ones and covers
as much as its size allows.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from open_clip_triplet.errors import PipelineError
from open_clip_triplet.files import is_remote, join, write_text_durably
from open_clip_triplet.tripletdata.run import options
from open_clip_triplet.tripletdata.run.command import report, run_as_asked
from open_clip_triplet.tripletdata.run.estimate import print_plan
from open_clip_triplet.tripletdata.run.records import Run
from open_clip_triplet.tripletdata.run.sample import Sample, Stats
from open_clip_triplet.tripletdata.run.stage import RUNTIME_ONLY, Stage
from open_clip_triplet.tripletdata.run.task import ShardTask
from open_clip_triplet.tripletdata.stages.coverage import Captions, Vocabulary, coverage_order
from open_clip_triplet.tripletdata.stages.filter import kept_tasks
from open_clip_triplet.tripletdata.stages.pack import Pack
from open_clip_triplet.tripletdata.stages.wordnet import Concepts, words

HELP = "count WordNet concepts; write subsets of growing coverage"
SIDES = ("captions", "negatives", "both")


@dataclass
class Count(Stage):
    """Stage: side shards with each sample's words beside their records, and how many synsets they have."""

    name: ClassVar[str] = "concepts"
    captions_first: ClassVar[bool] = True
    senses: str = "all"
    wordnet: str = field(default="", metadata=RUNTIME_ONLY)

    def open(self, device: str) -> None:
        self._concepts = Concepts(self.wordnet, self.senses)

    def process(self, task: ShardTask, stats: Stats) -> Iterator[Sample]:
        found = stats.values["words"] = []
        negative = stats.values["neg_words"] = []
        for sample in task.samples(stats, images=False):
            for texts, text, side in ((found, sample.text, SIDES[0]), (negative, sample.neg_text, SIDES[1])):
                known = [word for word in dict.fromkeys(words(text or "")) if self._concepts.word(word)]
                texts.append(" ".join(known))
                stats.count(f"synsets of {side}", len(self._concepts.of_words(known)))
            yield sample


@dataclass
class Positions:
    """A selection by place: per task, the numbers (from 0) of the samples that stay."""

    reason = "not in the subset"
    size: int
    numbers: dict[int, frozenset[int]]

    def config(self) -> dict:
        numbers = [[task, *sorted(chosen)] for task, chosen in sorted(self.numbers.items())]
        return {"size": self.size, "sha256": hashlib.sha256(json.dumps(numbers).encode()).hexdigest()[:16]}

    def keeper(self, task: ShardTask):
        """A function of a sample: whether it stays. To be asked once per sample, in order."""
        mine, place = self.numbers.get(task.index, frozenset()), itertools.count()
        return lambda sample: next(place) in mine


class Coverage:
    """Words of all captions, read shard after shard from what Count left: memory does not grow with them.

    Args:
        file: where the words of the captions are kept as numbers while a subset is chosen.
    """

    def __init__(self, concepts: Concepts, file: Path):
        self.concepts = concepts
        self.numbers: dict = {}
        self.captions = Captions(file)
        self.seen: dict[str, set[str]] = {side: set() for side in SIDES[:2]}
        self.frequent: Counter = Counter()

    def add(self, values: dict[str, list[str]]) -> None:
        """One shard's ``words`` and ``neg_words``."""
        texts = [text.split() for text in values["words"]]
        self.captions.append([[self.numbers.setdefault(w, len(self.numbers)) for w in ws] for ws in texts])
        for found in texts:
            self.seen["captions"].update(found)
            self.frequent.update({self.concepts.primary(word) for word in found})
        self.seen["negatives"].update(word for text in values["neg_words"] for word in text.split())

    def table(self, counts: dict[str, int]) -> dict:
        """Table 2 of the paper: total and unique synsets of captions, of negatives, of both."""
        unique = {side: self.concepts.of_words(found) for side, found in self.seen.items()}
        total = {side: counts.get(f"synsets of {side}", 0) for side in self.seen}
        total["both"], unique["both"] = sum(total.values()), set().union(*unique.values())
        return {side: {"total": total[side], "unique": len(unique[side])} for side in SIDES}

    def order(self) -> Iterator[int]:
        """Sample numbers in greedy order."""
        return coverage_order(self.captions, Vocabulary([self.concepts.word(word) for word in self.numbers]))

    def unique(self, chosen: list[int]) -> int:
        """Unique synsets of some samples."""
        vocabulary, known = list(self.numbers), set()
        wanted = sorted(chosen)
        for number, rows in itertools.groupby(wanted, lambda place: place // self.captions.chunk_size):
            numbers, starts = self.captions.chunk(number)
            for row in rows:
                row -= number * self.captions.chunk_size
                known.update(numbers[starts[row] : starts[row + 1]].tolist())
        return len(self.concepts.of_words(vocabulary[number] for number in known))


def add_arguments(parser) -> None:
    options.add_common(parser)
    parser.add_argument("--wordnet", default="", metavar="DIR", help="folder of WordNet 3.0's data.noun")
    parser.add_argument(
        "--senses",
        choices=["all", "first"],
        default="all",
        help="of a word: all, as the paper counts, or the first of each part of speech (default all)",
    )
    parser.add_argument(
        "--subset", type=options.positive, nargs="*", default=[], metavar="N", help="write subsets of N samples"
    )
    parser.add_argument("--top", type=options.natural, default=20, help="most frequent concepts to list (default 20)")


def run(args) -> int:
    if is_remote(args.output):
        raise PipelineError("concepts keeps its word numbers in a local --output", 2)
    tasks, stage = options.tasks(args), Count(args.senses, args.wordnet)
    if args.dry_run:
        return print_plan(args, tasks, [])
    counted = run_as_asked(stage, tasks, join(args.output, ".work", "concepts"), args)
    if (status := report(counted, skip_unreadable=args.skip_unreadable)) or args.part:
        return status
    kept = kept_tasks(counted)
    file = Path(args.output) / ".work" / "concepts" / ".words.int32"
    try:
        coverage = Coverage(Concepts(args.wordnet, args.senses), file)
        for task in kept:
            coverage.add(counted.read_values(task))
        coverage.captions.close()
        _write_table(args, counted, coverage)
        return _write_subsets(args, kept, counted, coverage)
    finally:
        file.unlink(missing_ok=True)


def _write_table(args, counted: Run, coverage: Coverage) -> None:
    counts: Counter = Counter()
    for record in counted.records():
        counts.update(record["counts"])
    table = coverage.table(counts)
    coverage.frequent.pop("", None)
    frequent = sorted(coverage.frequent.items(), key=lambda item: (-item[1], item[0]))[: args.top]
    found = {"samples": len(coverage.captions), "senses": args.senses, **table, "most_common": frequent}
    write_text_durably(join(args.output, "concepts.json"), json.dumps(found, indent=1) + "\n")
    samples = max(len(coverage.captions), 1)
    for side, numbers in table.items():
        mean = f"{numbers['total'] / samples:.1f} a sample"
        print(f"{side:9} {numbers['total']:>14,} synsets ({mean}), {numbers['unique']:>8,} unique")
    print(f"most frequent: {', '.join(f'{name} {number:,}' for name, number in frequent[:10])}")


def _write_subsets(args, kept: list[ShardTask], counted: Run, coverage: Coverage) -> int:
    """One folder ``subset-N`` per size, each a prefix of the same order."""
    if not args.subset:
        return 0
    order = list(itertools.islice(coverage.order(), max(args.subset)))
    ends = list(itertools.accumulate(len(counted.read_values(task)["words"]) for task in kept))
    status = 0
    for size in sorted(args.subset):
        task, begin = 0, 0
        chosen: dict = {}
        for place in sorted(order[:size]):
            while place >= ends[task]:
                begin, task = ends[task], task + 1
            chosen.setdefault(kept[task].index, set()).add(place - begin)
        unique = coverage.unique(order[:size])
        print(f"subset-{size}: {len(order[:size]):,} samples, {unique:,} unique synsets", file=sys.stderr)
        selected = Positions(size, {task: frozenset(numbers) for task, numbers in chosen.items()})
        stage = Pack(save_size=0, negatives=(), selection=selected)
        work = os.path.join(args.output, ".work", "concepts")
        chain = [task.beside(os.path.join(work, task.shard)) for task in kept]
        status |= report(run_as_asked(stage, chain, os.path.join(args.output, f"subset-{size}"), args))
    return status
