"""Concept coverage: WordNet synsets of captions, and subsets that grow in unique synsets (Table 2, Figure 3).

The concepts of a caption are the most frequent synsets of its nouns, verbs, adjectives and adverbs
(WordNet's first sense; every sense with ``--all-senses``). Subsets are prefixes of one greedy order:
each next sample is the one that adds most synsets not yet covered, so that every subset holds the
smaller ones and covers as much as its size allows.
"""

from __future__ import annotations

import atexit
import hashlib
import heapq
import itertools
import json
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from open_clip_triplet.errors import PipelineError
from open_clip_triplet.files import write_text_durably
from open_clip_triplet.tripletdata.run import options
from open_clip_triplet.tripletdata.run.command import report
from open_clip_triplet.tripletdata.run.runner import run_stage
from open_clip_triplet.tripletdata.run.sample import Stats
from open_clip_triplet.tripletdata.run.stage import Stage
from open_clip_triplet.tripletdata.run.task import ShardTask
from open_clip_triplet.tripletdata.stages.filter import kept_tasks
from open_clip_triplet.tripletdata.stages.pack import Pack

HELP = "count WordNet concepts; write subsets of growing coverage"

#: lexicographer files 00 to 44 (lexnames(5WN)); Debian's package lacks the list that NLTK wants
LEXNAMES = [
    "adj.all",
    "adj.pert",
    "adv.all",
    "noun.Tops",
    "noun.act",
    "noun.animal",
    "noun.artifact",
    "noun.attribute",
    "noun.body",
    "noun.cognition",
    "noun.communication",
    "noun.event",
    "noun.feeling",
    "noun.food",
    "noun.group",
    "noun.location",
    "noun.motive",
    "noun.object",
    "noun.person",
    "noun.phenomenon",
    "noun.plant",
    "noun.possession",
    "noun.process",
    "noun.quantity",
    "noun.relation",
    "noun.shape",
    "noun.state",
    "noun.substance",
    "noun.time",
    "verb.body",
    "verb.change",
    "verb.cognition",
    "verb.communication",
    "verb.competition",
    "verb.consumption",
    "verb.contact",
    "verb.creation",
    "verb.emotion",
    "verb.motion",
    "verb.perception",
    "verb.possession",
    "verb.social",
    "verb.stative",
    "verb.weather",
    "adj.ppl",
]
PARTS = {"noun": "1", "verb": "2", "adj": "3", "adv": "4"}
DEBIAN = "/usr/share/wordnet"


@lru_cache(maxsize=1)
def load_wordnet(folder: str = ""):
    """NLTK's WordNet reader over ``folder``, NLTK's own data, or Debian's ``wordnet-base``.

    Raises:
        PipelineError: no WordNet there; the message says how to get it.
    """
    try:
        from nltk import data
        from nltk.corpus.reader.wordnet import WordNetCorpusReader
    except ImportError as error:
        raise PipelineError("concepts needs NLTK: install open_clip_triplet with its extra `build`") from error

    class Reader(WordNetCorpusReader):
        def map_wn(self, version="wordnet"):
            """No map to other versions: it serves other languages, and costs seconds."""

    candidates = [folder] if folder else [*(os.path.join(p, "corpora", "wordnet") for p in data.path), DEBIAN]
    root = next((path for path in candidates if os.path.exists(os.path.join(path, "data.noun"))), None)
    if root is None:
        raise PipelineError(
            f"no WordNet 3.0 in {folder or 'nltk_data or ' + DEBIAN}. Install Debian's wordnet-base, run "
            "python -m nltk.downloader wordnet, or give the folder of data.noun with --wordnet."
        )
    if not os.path.exists(os.path.join(root, "lexnames")):
        root = _with_lexnames(root)
    data.path.append(os.path.abspath(root))  # NLTK reads below the folders of its path alone
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # other languages are not needed
        return Reader(root, None)


def _with_lexnames(root: str) -> str:
    """A temporary copy of ``root`` (30 MB; NLTK follows no links) with the ``lexnames`` file it lacks."""
    folder = Path(tempfile.mkdtemp(prefix="wordnet-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for path in (*Path(root).glob("data.*"), *Path(root).glob("index.*"), *Path(root).glob("*.exc")):
        shutil.copy(path, folder)
    rows = (f"{n:02d}\t{name}\t{PARTS.get(name.split('.')[0], '3')}\n" for n, name in enumerate(LEXNAMES))
    (folder / "lexnames").write_text("".join(rows))
    return str(folder)


class Concepts:
    """Synset names of captions. Words are looked up once each.

    Args:
        folder: where WordNet is; empty looks in the usual places.
        all_senses: every sense of a word instead of the first of each part of speech.
    """

    def __init__(self, folder: str = "", all_senses: bool = False):
        self._wordnet, self._all = load_wordnet(folder), all_senses
        self._known: dict[str, tuple[str, ...]] = {}

    def of(self, caption: str) -> set[str]:
        """Synset names such as ``dog.n.01``."""
        return {name for word in words(caption) for name in self._word(word)}

    def _word(self, word: str) -> tuple[str, ...]:
        if word not in self._known:
            names: list[str] = []
            for part in "nvar":
                synsets = self._wordnet.synsets(word, pos=part)
                names += [synset.name() for synset in (synsets if self._all else synsets[:1])]
            self._known[word] = tuple(dict.fromkeys(names))
        return self._known[word]


#: words that WordNet lists with senses a caption does not mean ("a" as a vitamin, "in" as an inch)
STOPWORDS = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "been",
        "being",
        "but",
        "by",
        "can",
        "did",
        "do",
        "does",
        "for",
        "from",
        "had",
        "has",
        "have",
        "he",
        "her",
        "his",
        "i",
        "if",
        "in",
        "into",
        "is",
        "it",
        "its",
        "me",
        "my",
        "no",
        "nor",
        "not",
        "of",
        "on",
        "or",
        "our",
        "out",
        "over",
        "she",
        "so",
        "than",
        "that",
        "the",
        "their",
        "them",
        "then",
        "there",
        "these",
        "they",
        "this",
        "those",
        "to",
        "too",
        "under",
        "until",
        "up",
        "us",
        "was",
        "we",
        "were",
        "what",
        "when",
        "where",
        "which",
        "while",
        "who",
        "whom",
        "why",
        "will",
        "with",
        "would",
        "you",
        "your",
    ]
)


def words(caption: str) -> list[str]:
    """Lower-case words of a caption that can carry a concept.

    >>> words("A dog's red ball, 2018")
    ['dog', 'red', 'ball']
    """
    found = re.findall(r"[a-z]+(?:-[a-z]+)*", re.sub(r"['’]s\b", "", caption.lower()))
    return [word for word in found if word not in STOPWORDS and len(word) > 1]


@dataclass
class Count(Stage):
    """Stage: side shards with each sample's synsets beside their records."""

    name: ClassVar[str] = "concepts"
    all_senses: bool = False
    wordnet: str = ""

    def config(self) -> dict:
        return {"all_senses": self.all_senses}

    def open(self, device: str) -> None:
        self._concepts = Concepts(self.wordnet, self.all_senses)

    def process(self, task: ShardTask, stats: Stats):
        found = stats.values["synsets"] = []
        negative = stats.values["neg_synsets"] = []
        for sample in task.samples(stats, images=False):
            found.append(sorted(self._concepts.of(sample.text)))
            negative.append(sorted(self._concepts.of(sample.neg_text)) if sample.neg_text else [])
            yield sample


def coverage_order(concepts: list[Iterable[str]]) -> list[int]:
    """Sample numbers, each the one that adds most concepts to those before it; ties in sample order.

    Lazy greedy: what a sample would add only shrinks, so a queue of old counts is enough.
    """
    covered: set[str] = set()
    queue = [(-len(set(names)), number) for number, names in enumerate(concepts)]
    heapq.heapify(queue)
    order = []
    while queue:
        gain, number = heapq.heappop(queue)
        fresh = -len(set(concepts[number]) - covered)
        if fresh != gain:
            heapq.heappush(queue, (fresh, number))
            continue
        covered |= set(concepts[number])
        order.append(number)
    return order


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
        """A function of a sample's json: whether it stays. To be asked once per sample, in order."""
        mine, place = self.numbers.get(task.index, frozenset()), itertools.count()
        return lambda meta: next(place) in mine


def statistics(positive: list[list[str]], negative: list[list[str]]) -> dict:
    """Table 2 of the paper: total and unique synsets of captions, of negatives, of both."""
    sides = {"captions": positive, "negatives": negative, "both": positive + negative}
    return {
        side: {"total": sum(map(len, lists)), "unique": len({name for names in lists for name in names})}
        for side, lists in sides.items()
    }


def add_arguments(parser) -> None:
    options.add_common(parser)
    parser.add_argument("--wordnet", default="", metavar="DIR", help="folder of WordNet 3.0's data.noun")
    parser.add_argument(
        "--all-senses", action="store_true", help="count every sense of a word, not the first"
    )
    parser.add_argument(
        "--subset", type=int, nargs="*", default=[], metavar="N", help="write subsets of N samples"
    )
    parser.add_argument("--top", type=int, default=20, help="most frequent concepts to print (default 20)")


def run(args) -> int:
    tasks = options.tasks(args)
    if args.dry_run:
        from open_clip_triplet.tripletdata.run.estimate import print_plan

        return print_plan(args, tasks, [])
    output = Path(args.output)
    engine = options.engine(args, cpu=True)
    stage = Count(args.all_senses, args.wordnet)
    counted = run_stage(stage, tasks, output / ".work" / "concepts", engine, quiet=args.quiet)
    if status := report(counted):
        return status
    kept = kept_tasks(counted)
    values = {task.index: counted.read_values(task) for task in kept}
    positive = [names for task in kept for names in values[task.index]["synsets"]]
    negative = [names for task in kept for names in values[task.index]["neg_synsets"]]
    table = statistics(positive, negative)
    frequent = Counter(name for names in positive for name in names).most_common(args.top)
    text = json.dumps({"samples": len(positive), **table, "most_common": frequent}, indent=1)
    write_text_durably(output / "concepts.json", text + "\n")
    for side, numbers in table.items():
        print(f"{side:9} {numbers['total']:>12,} synsets, {numbers['unique']:>8,} unique")
    return _write_subsets(args, kept, positive, values, output, engine)


def _write_subsets(args, kept, positive, values, output: Path, engine) -> int:
    """One folder ``subset-N`` per size, each a prefix of the same order."""
    if not args.subset:
        return 0
    order = coverage_order(positive)
    places = [(task, number) for task in kept for number in range(len(values[task.index]["synsets"]))]
    status = 0
    for size in sorted(args.subset):
        chosen: dict[int, set[int]] = {}
        for place in order[:size]:
            task, number = places[place]
            chosen.setdefault(task.index, set()).add(number)
        unique = len({name for place in order[:size] for name in positive[place]})
        print(f"subset-{size}: {min(size, len(order)):,} samples, {unique:,} unique synsets", file=sys.stderr)
        selected = Positions(size, {task: frozenset(numbers) for task, numbers in chosen.items()})
        stage = Pack(save_size=0, negatives=(), selection=selected)
        chain = [
            task.beside(str(output / ".work" / "concepts" / task.shard)) for task in kept
        ]
        status |= report(run_stage(stage, chain, output / f"subset-{size}", engine, quiet=args.quiet))
    return status
