"""Benchmarks on one model: load, encode what is new, score, build the results."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from open_clip_triplet.errors import DataError
from open_clip_triplet.evaluation.benchmarks import Benchmark, get
from open_clip_triplet.evaluation.encode import Encoder, EncodingJob, evaluating
from open_clip_triplet.evaluation.hashes import ContentHashes
from open_clip_triplet.evaluation.images import ImageRef
from open_clip_triplet.evaluation.results import build_result, flat_metrics
from open_clip_triplet.evaluation.run.suite import load_suite, require_whole
from open_clip_triplet.evaluation.store import EmbeddingStore, text_id
from open_clip_triplet.evaluation.tasks import Outcome, Task


class Evaluation(dict[str, float]):
    """Flat metrics, ``benchmark/subset/metric`` -> value in 0..1, ready to be logged.

    ``results``: benchmark -> the full result (see ``results.build_result``). ``skipped``: benchmark ->
    why there was nothing to run. ``encoded``: embeddings made anew, by kind. A benchmark whose data was
    not complete is called ``<benchmark>-partial`` in the flat names.
    """

    def __init__(self, results: dict[str, dict[str, Any]], skipped: dict[str, str], encoded: dict[str, int]):
        super().__init__(pair for result in results.values() for pair in flat_metrics(result).items())
        self.results, self.skipped, self.encoded = results, skipped, encoded


def evaluate(
    model: Any,
    *,
    preprocess: Callable[[Any], Any],
    tokenizer: Callable[[list[str]], Any],
    benchmarks: Sequence[str],
    data_root: str | os.PathLike[str],
    device: Any = "cpu",
    batch_size: int = 64,
    autocast: Callable[[], Any] | None = None,
    input_dtype: Any = None,
    allow_partial: bool = False,
    limit: int | None = None,
    store: EmbeddingStore | None = None,
    checkpoint: dict[str, Any] | None = None,
    progress: bool = False,
) -> Evaluation:
    """Run benchmarks on a model held in memory.

    Args:
        model: anything with ``encode_image([n, 3, H, W])`` and ``encode_text([n, L])``, both to [n, D].
        preprocess: PIL image -> [3, H, W]. tokenizer: captions -> integer tensor [n, L].
        benchmarks: names, as ``triplet-evaluate data`` lists them.
        data_root: folder with the benchmarks' files.
        autocast: function to a context manager, or None. input_dtype: what images are cast to, or None.
        allow_partial: score what is there instead of raising.
        limit: score the first so many items of each subset alone; such results are labelled partial.
        store: keeps embeddings between calls; without one they are kept in memory for this call.
        checkpoint: facts for the results; ``name`` labels them.

    Raises:
        MissingData, PartialData: data is lacking and ``allow_partial`` is false.
        NonFiniteEmbeddings: the model gives NaN or infinity.
        ValueError: unknown benchmark.
    """
    checkpoint = checkpoint or {"name": type(model).__name__}
    encoder = Encoder(
        model,
        preprocess,
        tokenizer,
        device=device,
        autocast=autocast,
        input_dtype=input_dtype,
        name=checkpoint["name"],
    )
    with evaluating(model):
        return run_suite(
            lambda: encoder,
            [get(name) for name in benchmarks],
            data_root,
            store or EmbeddingStore(),
            checkpoint=checkpoint,
            batch_size=batch_size,
            allow_partial=allow_partial,
            limit=limit,
            progress=progress,
        )


def run_suite(
    get_encoder: Callable[[], Encoder],
    benchmarks: Sequence[Benchmark],
    data_root: str | os.PathLike[str],
    store: EmbeddingStore,
    *,
    checkpoint: dict[str, Any],
    batch_size: int = 64,
    allow_partial: bool = False,
    limit: int | None = None,
    progress: bool = False,
    hashes: ContentHashes | None = None,
    share: tuple[int, int] = (0, 1),
    barrier: Callable[[], object] = lambda: None,
    on_result: Callable[[dict[str, Any], dict[str, Outcome]], object] | None = None,
) -> Evaluation:
    """``evaluate`` with the model made only if something has to be encoded.

    Benchmark after benchmark is encoded, scored and handed to ``on_result``, so that a run cut short
    keeps the results so far, and its embeddings for the next run.

    Args:
        limit: score the first so many items of each subset alone; the results say so.
        share: (rank, world size): this process hashes and encodes every world-size-th missing item. All
            processes need the same store on disk, opened before any of them adds to it.
        barrier: returns once every process has called it.
        on_result: takes each benchmark's result, and the outcome of each of its subsets.
    """
    allow_partial = allow_partial or limit is not None
    suite, skipped = load_suite(benchmarks, data_root, allow_partial=allow_partial)
    if limit is not None:
        for _, tasks in suite.values():
            for task in tasks.values():
                task.limit(limit)
    get_encoder = lru_cache(maxsize=1)(get_encoder)
    job = EncodingJob(get_encoder, store, batch_size, progress, share)
    scorer = _Scorer(job, hashes or ContentHashes(), barrier, allow_partial)
    results = {}
    for benchmark, tasks in suite.values():
        identities = scorer.encode(benchmark, tasks)
        outcomes = scorer.score(tasks, identities)
        captions = [text_id(caption) for task in tasks.values() for caption in task.captions()]
        result = build_result(
            benchmark,
            tasks,
            outcomes,
            checkpoint=checkpoint,
            remarks=_remarks(store, (identities[ref] for task in tasks.values() for ref in task.images())),
            captions={"cut": 0, **_remarks(store, captions)},
            identities=identities,
        )
        results[benchmark.name] = result
        if on_result:
            on_result(result, outcomes)
    return Evaluation(results, skipped, dict(store.encoded))


class _Scorer:
    """Encodes and scores one benchmark after the other."""

    def __init__(
        self, job: EncodingJob, hashes: ContentHashes, barrier: Callable[[], object], allow_partial: bool
    ):
        self.job, self.store, self.hashes = job, job.store, hashes
        self.barrier, self.allow_partial = barrier, allow_partial

    def encode(self, benchmark: Benchmark, tasks: dict[str, Task]) -> dict[ImageRef, str]:
        """Put every embedding that a benchmark needs into the store.

        Returns:
            image -> identity. Items without usable images are dropped from the tasks.

        Raises:
            PartialData: some are, and that is not allowed. DataError: another process ended early.
        """
        identities, unusable = self._identify(tasks)
        suite = {benchmark.name: (benchmark, tasks)}
        for task in tasks.values():
            task.drop(unusable)
        require_whole(suite, self.allow_partial)
        by_id: dict[str, ImageRef] = {}
        for ref, identity in identities.items():
            by_id.setdefault(identity, ref)
        captions = {text_id(caption): caption for task in tasks.values() for caption in task.captions()}
        self.job.images(by_id, benchmark.name)
        self.job.texts(captions, benchmark.name)
        self.barrier()
        self.store.reload()
        unusable = self._without_row(identities)
        for task in tasks.values():
            task.drop(unusable)
        if lost := len(self.store.missing("texts", captions)):
            raise DataError(
                f"{lost} captions have no embedding: another process of this run ended early, or files of "
                "the embedding store were removed meanwhile. Run it again: what is stored is kept"
            )
        require_whole(suite, self.allow_partial)
        return identities

    def score(self, tasks: dict[str, Task], identities: dict[ImageRef, str]) -> dict[str, Outcome]:
        def images(refs: Sequence[ImageRef]) -> np.ndarray:
            return self.store.get("images", [identities[ref] for ref in refs])

        def texts(captions: Sequence[str]) -> np.ndarray:
            return self.store.get("texts", [text_id(caption) for caption in captions])

        return {name: task.score(images, texts) for name, task in tasks.items()}

    def _identify(self, tasks: dict[str, Task]) -> tuple[dict[ImageRef, str], dict[ImageRef, str]]:
        """(image -> identity, image -> why it has none); processes share the reading."""
        refs = list(dict.fromkeys(ref for task in tasks.values() for ref in task.images()))
        if self.job.world > 1:
            self._hash(refs[self.job.rank :: self.job.world])
            self.barrier()
            self.hashes.reload()
        return self._hash(refs)

    def _hash(self, refs: Sequence[ImageRef]) -> tuple[dict[ImageRef, str], dict[ImageRef, str]]:
        identities, unusable = {}, {}
        for ref in refs:
            try:
                identities[ref] = self.hashes(ref)
            except OSError:
                unusable[ref] = "image unreadable"
        self.hashes.save()
        return identities, unusable

    def _without_row(self, identities: dict[ImageRef, str]) -> dict[ImageRef, str]:
        """The images that came to no embedding, by any process, and why."""
        return {
            ref: "image damaged" if identity in self.store.failed else "image unreadable"
            for ref, identity in identities.items()
            if not self.store.has("images", identity)
        }


def _remarks(store: EmbeddingStore, identities: Iterable[str]) -> dict[str, int]:
    """How many different things there are, and how many of them are unusual, by kind."""
    unique = set(identities)
    counts = Counter(remark for identity in unique for remark in store.remarks.get(identity, ()))
    return {"unique": len(unique), **counts}
