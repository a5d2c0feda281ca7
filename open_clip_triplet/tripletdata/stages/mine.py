"""Real hard negatives: for every pair of ordinary shards, its nearest different pair.

Reads img2dataset-style shards (jpg, txt, json) and writes paired shards, one for each it read. The
nearest pair's image and caption become ``neg.jpg`` and ``neg.txt``. Not taken, as near-duplicates: the
same image bytes, a caption in common, and any similarity above ``--max-similarity``. The search is exact
unless ``--index`` is given; the same input and options give the same bytes.

Two stages: ``embed`` (features, digests and places of all pairs, in ``.work/embed``), then ``mine``. Both
work in several processes with ``--workers``; a run that was killed continues.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from open_clip_triplet import files
from open_clip_triplet.errors import PipelineError, ShardError
from open_clip_triplet.tripletdata.backends.neighbours import (
    Collection,
    exact_search,
    faiss_search,
    nearest_different,
)
from open_clip_triplet.tripletdata.backends.openclip import WITH_WEIGHTS, check_weights, provenance
from open_clip_triplet.tripletdata.backends.pairs import Pair
from open_clip_triplet.tripletdata.run import options
from open_clip_triplet.tripletdata.run.command import DONE, report, run_as_asked
from open_clip_triplet.tripletdata.run.estimate import print_plan
from open_clip_triplet.tripletdata.run.folder import refuse_foreign
from open_clip_triplet.tripletdata.run.plan import plan_tasks
from open_clip_triplet.tripletdata.run.sample import Sample, Stats
from open_clip_triplet.tripletdata.run.stage import RUNTIME_ONLY, Stage, model_name
from open_clip_triplet.tripletdata.run.task import ShardTask
from open_clip_triplet.tripletdata.stages.embed import Embed
from open_clip_triplet.tripletdata.stages.filter import kept_tasks

HELP = "real hard negatives: the nearest different pair of every pair"
EXAMPLES = """\
examples:
  triplet-shards mine --input 'cc3m/{00000..00331}.tar' --output mined
  triplet-shards mine --input cc12m/ --output mined --model ViT-B-32-quickgelu --pretrained openai \\
      --index IVF4096,SQfp16

"""
NOT_EMBEDDABLE = "not embeddable (image cannot be decoded or no known word)"


@dataclass
class Mine(Stage):
    """Stage: paired samples of each pair and its nearest different pair.

    Args:
        collection: hash of all inputs: every one of them decides about every negative.
        embedded: folder of ``Embed``. numbers: its shards. shards: their inputs.
    """

    name: ClassVar[str] = "mine"
    redoes_whole: ClassVar[bool] = True
    embedder: str = "captions"
    max_similarity: float = 0.95
    index: str | None = None
    nprobe: int = 64
    collection: str = ""
    embedded: str = field(default="", metadata=RUNTIME_ONLY)
    names: tuple[str, ...] = field(default=(), metadata=RUNTIME_ONLY)
    shards: tuple[str, ...] = field(default=(), metadata=RUNTIME_ONLY)
    search_on_gpu: bool = field(default=False, metadata=RUNTIME_ONLY)

    @property
    def uses_gpu(self) -> bool:
        return self.search_on_gpu

    def open(self, device: str) -> None:
        features = self._arrays("features", widest=True)
        self._collection = Collection(
            features, np.concatenate(self._arrays("digests")), _narrow(np.concatenate(self._arrays("captions")))
        )
        self._lines, self._ends = self._arrays("lines"), self._arrays("ends")
        if self.index:
            key = hashlib.sha256(f"{self.index}/{self.collection}".encode()).hexdigest()[:8]
            path = os.path.join(self.embedded, f"index-{key}.faiss")
            self._search = faiss_search(features, self.index, self.nprobe, path)
        else:
            self._search = exact_search(features, device)

    def _arrays(self, name: str, widest: bool = False) -> list[np.ndarray]:
        found = [
            np.load(os.path.join(self.embedded, f"{task}.{name}.npy"), mmap_mode="r", allow_pickle=False)
            for task in self.names
        ]
        if widest:  # a shard without one good image has features of width 1
            width = max(block.shape[1] for block in found)
            found = [b if b.shape[1] == width else np.zeros((len(b), width), b.dtype) for b in found]
        return found

    def _pair(self, index: int) -> Pair:
        """The pair of a row, from the line that ``Embed`` kept of it."""
        shard = int(np.searchsorted(self._collection.first, index, side="right")) - 1
        row, ends = index - int(self._collection.first[shard]), self._ends[shard]
        line = self._lines[shard][int(ends[row - 1]) if row else 0 : int(ends[row])].tobytes()
        key, source_key, captions, suffix, offset, size, meta = json.loads(line)
        return Pair(key, source_key, self.shards[shard], captions, suffix, offset, size, 0, meta)

    def process(self, task: ShardTask, stats: Stats) -> Iterator[Sample]:
        number = self.names.index(task.name)
        rows = range(*map(int, self._collection.first[number : number + 2]))
        found, cosine = nearest_different(self._collection, rows, self._search, self.max_similarity)
        for at, (index, similarity) in enumerate(zip(found, cosine)):
            stats.read += 1
            pair = self._pair(rows[at])
            if index >= 0:
                yield self._paired(pair, self._pair(int(index)), float(similarity))
            elif self._collection.usable[rows[at]]:
                stats.drop("every other pair is a near-duplicate", pair.key)
            else:
                stats.drop(NOT_EMBEDDABLE, pair.key)
            stats.report((at + 1) / len(rows))

    def _paired(self, pair: Pair, other: Pair, similarity: float) -> Sample:
        """The pair's own json is kept, with captions and where the negative came from added."""
        meta = {
            **pair.meta,
            "captions": pair.captions,
            "neg_captions": other.captions,
            "source_key": pair.source_key,
            "neg_source_key": other.source_key,
            "neg_source_shard": os.path.basename(other.shard),
            "similarity": round(similarity, 4),
            "embedder": model_name(self.embedder),
            "t2i": "mined",
        }
        return Sample(
            pair.key, pair.captions[0], pair.image(), pair.suffix, other.captions[0], other.image(), other.suffix, meta
        )


def _narrow(captions: np.ndarray) -> np.ndarray:
    """Without the columns that no pair needs."""
    used = np.flatnonzero(captions.any(axis=0))
    return captions[:, : used[-1] + 1] if len(used) else captions[:, :1]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("input and output")
    group.add_argument(
        "--input", nargs="+", required=True, help="folder of uncompressed shards, or pattern a/{000..999}.tar"
    )
    group.add_argument("--output", required=True, help="local folder of the paired shards; rerun to continue")
    group = parser.add_argument_group("neighbours")
    group.add_argument(
        "--embedder",
        default="captions",
        metavar="captions|FOLDER",
        help="captions: TF-IDF of the captions, no weights needed (default). FOLDER: a transformers sentence model",
    )
    group.add_argument(
        "--model",
        help="an OpenCLIP model instead, or a folder of your own as local-dir:FOLDER: mean of image and caption "
        "similarity",
    )
    group.add_argument("--pretrained", help="weights of a --model that brings none: a tag, or a checkpoint file")
    group.add_argument(
        "--max-similarity",
        type=options.cosine,
        default=0.95,
        help="cosine from which a neighbour is a near-duplicate (default 0.95; 1: none is)",
    )
    group.add_argument(
        "--index",
        metavar="FACTORY",
        help="FAISS index to search in, e.g. IVF16384,SQfp16: for millions of pairs on CPUs",
    )
    group.add_argument(
        "--nprobe", type=options.positive, default=64, help="lists of an IVF index to look at (default 64)"
    )
    options.add_faults(parser)
    options.add_engine(parser)


def run(args) -> int:
    _check_model(args)
    if files.is_remote(args.output):
        raise PipelineError(f"--output {args.output}: mining maps its features into memory, from a local folder", 2)
    tasks = options.of_part(args, plan_tasks(args.input, output=args.output, policy=options.policy(args)))
    refuse_foreign(args.output, tasks)
    collection = _collection(tasks)
    embedder = Embed(
        args.embedder, args.model, args.pretrained, "" if args.model or args.embedder != "captions" else collection,
        tuple(task.inputs[0] for task in tasks),
    )
    if args.dry_run:
        return print_plan(args, tasks, [embedder])
    work = files.join(os.path.abspath(args.output), ".work", "embed")
    embedded = run_as_asked(embedder, tasks, work, args)
    if status := report(embedded, skip_unreadable=args.skip_unreadable):
        return status  # another shard's pairs may be anybody's nearest
    waiting = [t for t in tasks if embedded.record(t) is None and t.origin not in embedded.unreadable]
    if waiting:
        print(
            f"  {len(waiting):,} shards of other parts are not embedded yet, and a nearest pair may be in any of "
            "them: run this part again once they are.",
            file=sys.stderr,
        )
        return DONE
    found = kept_tasks(embedded)
    stage = Mine(
        provenance(args.model, args.pretrained) if args.model else args.embedder,
        args.max_similarity, args.index, args.nprobe, collection, work,
        tuple(task.name for task in found), tuple(task.inputs[0] for task in found),
        search_on_gpu=args.index is None,
    )
    return report(run_as_asked(stage, found, args.output, args), skip_unreadable=args.skip_unreadable)


def _check_model(args) -> None:
    """Refuse an OpenCLIP model without weights, or with weights that it does not take; a sentence model that is
    not there, which transformers would look for on the hub, again and again.
    """
    if not args.model and args.embedder != "captions" and not os.path.isdir(args.embedder):
        raise PipelineError(f"--embedder {args.embedder}: no such folder (and not captions)", 2)
    if not args.model and args.pretrained:
        raise PipelineError("--pretrained goes with --model NAME", 2)
    if not args.model:
        return
    if args.pretrained and args.model.startswith(WITH_WEIGHTS):
        raise PipelineError(f"{args.model} brings its weights: leave out --pretrained", 2)
    check_weights(args.model, args.pretrained)


def _collection(tasks: list[ShardTask]) -> str:
    """Hash of the names and sizes of all inputs.

    Raises:
        PipelineError: a table is among them.
    """
    found = []
    for task in tasks:
        if task.rows:
            raise PipelineError(f"{task.inputs[0]}: mining reads shards in place; pack the table first", 2)
        try:
            found.append(task.identity())
        except ShardError as error:
            raise PipelineError(str(error), 2) from error
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]
