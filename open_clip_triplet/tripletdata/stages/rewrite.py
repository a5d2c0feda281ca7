"""Caption rewrites, as LaCLIP: by a language model, or joined from LaCLIP's released files.

The rewrite becomes ``txt``; the original stays in the json's ``captions``, after the rewrites. Where
no rewrite passes the checks the original is kept, and counted.

Reference: Fan et al., NeurIPS 2023, arXiv:2305.20088.
"""

from __future__ import annotations

import csv
import functools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, ClassVar

from open_clip_triplet.errors import PipelineError
from open_clip_triplet.tripletdata.backends.factory import add_model_arguments, make_model
from open_clip_triplet.tripletdata.backends.wording import normal
from open_clip_triplet.tripletdata.run import options
from open_clip_triplet.tripletdata.run.sample import Sample, Stats
from open_clip_triplet.tripletdata.run.stage import Stage, sample_seed
from open_clip_triplet.tripletdata.run.task import ShardTask
from open_clip_triplet.tripletdata.stages.answers import Checker
from open_clip_triplet.tripletdata.stages.captions import GenerateWithRetries

HELP = "rewrite captions with a language model, or join LaCLIP's rewrites"
PROMPT = "prompt_rewrite.txt"


@dataclass
class Rewrite(Stage):
    """Stage: replaces ``txt`` by a rewrite.

    Args:
        model: a caption model, or None to join released files.
        original: LaCLIP's file of original captions (csv: last column; txt: a line each).
        rewrites: LaCLIP's files of rewrites, line by line beside ``original``.
    """

    name: ClassVar[str] = "rewrite"
    captions_first: ClassVar[bool] = True
    model: Any = None
    original: str = ""
    rewrites: tuple[str, ...] = ()
    attempts: int = 3
    max_chars: int = 1000
    seed: int = 0
    images: bool = True

    def config(self) -> dict:
        return {**super().config(), "model": self.model and self.model.config()}

    def open(self, device: str) -> None:
        if self.model:
            self.model.open(device)
        else:
            read_rewrites(self.original, self.rewrites)

    def process(self, task: ShardTask, stats: Stats) -> Iterator[Sample]:
        samples = list(task.samples(stats, images=False))
        found = dict(zip((s.key for s in samples), self._rewrites(samples, stats)))
        for sample in task.samples(Stats()) if self.images else samples:
            if texts := found[sample.key]:
                captions = sample.meta.get("captions") or [sample.text]
                known = [caption for caption in captions if caption not in texts]
                sample.meta = {**sample.meta, "captions": [*texts, *known], "rewriter": self._by()}
                sample.text = random.Random(sample_seed(self.seed, sample.key)).choice(texts)
            else:
                stats.count("kept as it was")
            yield sample

    def _by(self) -> str:
        return self.model.model if self.model else "LaCLIP"

    def _rewrites(self, samples: list[Sample], stats: Stats) -> list[list[str]]:
        if self.model:
            # A sample without a good rewrite is kept, so the drops that asking counts are not drops here.
            checker = Checker(self.model.prompt, paraphrases=True)
            return GenerateWithRetries(self.model, checker, 1, self.attempts, self.max_chars)(
                samples, Stats()
            )
        table = read_rewrites(self.original, self.rewrites)
        return [table.get(normal(sample.text), []) for sample in samples]


@functools.lru_cache(maxsize=1)
def read_rewrites(original: str, rewrites: tuple[str, ...]) -> dict[str, list[str]]:
    """Words of each original caption -> its rewrites, one from each file.

    Raises:
        PipelineError: a file is missing, or the files have different numbers of lines.
    """
    table: dict[str, list[str]] = {}
    try:
        streams = [_lines(original), *map(_lines, rewrites)]
        for number, row in enumerate(zip_longest(*streams), 1):  # a file that ended gives None
            if None in row:
                raise PipelineError(f"{original} and {', '.join(rewrites)} differ in length from line {number}", 2)
            caption, *texts = row
            table.setdefault(normal(caption), [text for text in dict.fromkeys(texts) if normal(text)])
    except (OSError, csv.Error) as error:
        raise PipelineError(f"{original} and {', '.join(rewrites)}: cannot be read ({error})", 2) from error
    return table


def _lines(path: str) -> Iterator[str]:
    """Captions of a file: the last column of a csv, or the lines of a text."""
    with open(
        path, encoding="utf-8", errors="replace", newline="" if path.endswith(".csv") else None
    ) as file:
        if path.endswith(".csv"):
            yield from (row[-1].strip() for row in csv.reader(file) if row)
        else:
            yield from (line.strip() for line in file)


def add_arguments(parser) -> None:
    options.add_common(parser)
    add_model_arguments(parser, PROMPT)
    parser.add_argument("--attempts", type=options.positive, default=3, help="times to ask for a rewrite (default 3)")
    parser.add_argument(
        "--max-caption-chars", type=options.positive, default=1000, help="leave longer captions as they are"
    )
    add_laclip_arguments(parser)


def add_laclip_arguments(parser) -> None:
    group = parser.add_argument_group("LaCLIP's released rewrites")
    group.add_argument(
        "--laclip-original", metavar="FILE", help="cc3m_original.csv: use files, no language model"
    )
    group.add_argument(
        "--laclip-rewrites", nargs="+", metavar="FILE", help="cc3m_chatgpt.txt cc3m_bard.txt …"
    )


def make_stage(args, *, images: bool = True) -> Rewrite:
    if bool(args.laclip_original) != bool(args.laclip_rewrites):
        raise PipelineError("--laclip-original and --laclip-rewrites go together", 2)
    model = None if args.laclip_original else make_model(args, PROMPT)
    return Rewrite(
        model,
        args.laclip_original or "",
        tuple(args.laclip_rewrites or ()),
        args.attempts,
        args.max_caption_chars,
        args.seed,
        images,
    )
