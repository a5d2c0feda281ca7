"""Running benchmarks on one model: load, encode what is new, score, build the results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from open_clip_triplet.errors import DataError, PartialData
from open_clip_triplet.evaluation.benchmarks import Benchmark, get
from open_clip_triplet.evaluation.encode import Encoder, evaluating
from open_clip_triplet.evaluation.encoding import EncodingJob
from open_clip_triplet.evaluation.images import ContentHashes, ImageRef
from open_clip_triplet.evaluation.results import build_result, flat_metrics
from open_clip_triplet.evaluation.store import EmbeddingStore, text_id
from open_clip_triplet.evaluation.tasks import Task


class Evaluation(dict):
    """Flat metrics, ``benchmark/subset/metric`` -> value in 0..1, ready to be logged.

    ``results``: benchmark -> the full result (see ``results.build_result``). ``skipped``: benchmark ->
    why there was nothing to run. ``encoded``: embeddings made anew, by kind. A benchmark whose data was
    not complete is called ``<benchmark>-partial`` in the flat names.
    """

    def __init__(self, results: dict[str, dict], skipped: dict[str, str], encoded: dict[str, int]):
        super().__init__(pair for result in results.values() for pair in flat_metrics(result).items())
        self.results, self.skipped, self.encoded = results, skipped, encoded


def evaluate(
    model,
    *,
    preprocess: Callable,
    tokenizer: Callable,
    benchmarks: Sequence[str],
    data_root,
    device="cpu",
    batch_size: int = 64,
    autocast=None,
    input_dtype=None,
    allow_partial: bool = False,
    store: EmbeddingStore | None = None,
    checkpoint: dict | None = None,
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
        store: keeps embeddings between calls; without one they are kept in memory for this call.
        checkpoint: facts for the results; ``name`` labels them.

    Raises:
        MissingData, PartialData: data is lacking and ``allow_partial`` is false.
        ValueError: unknown benchmark.
    """
    encoder = Encoder(model, preprocess, tokenizer, device=device, autocast=autocast, input_dtype=input_dtype)
    with evaluating(model):
        return run_suite(
            lambda: encoder,
            [get(name) for name in benchmarks],
            data_root,
            store or EmbeddingStore(),
            checkpoint=checkpoint or {"name": type(model).__name__},
            batch_size=batch_size,
            allow_partial=allow_partial,
            progress=progress,
        )


def run_suite(
    get_encoder: Callable[[], Encoder],
    benchmarks: Sequence[Benchmark],
    data_root,
    store: EmbeddingStore,
    *,
    checkpoint: dict,
    batch_size: int = 64,
    allow_partial: bool = False,
    progress: bool = False,
    hashes: ContentHashes | None = None,
    share: tuple[int, int] = (0, 1),
    barrier: Callable[[], None] = lambda: None,
    on_result: Callable[[dict], object] | None = None,
) -> Evaluation:
    """``evaluate`` with the model made only if something has to be encoded.

    Args:
        share: (rank, world size): this process hashes and encodes every world-size-th missing item. All
            processes need the same store on disk, opened before any of them adds to it.
        barrier: returns once every process has called it.
        on_result: takes each benchmark's result as soon as there is one.
    """
    suite, skipped = load_suite(benchmarks, data_root, allow_partial=allow_partial)
    hashes = hashes or ContentHashes()
    if share[1] > 1:
        _identify(suite, hashes, share)
        hashes.save()
        barrier()
        hashes.reload()
    image_ids, unusable = _identify(suite, hashes)
    hashes.save()
    _drop(suite, unusable)
    _require_whole(suite, allow_partial)
    by_id: dict[str, ImageRef] = {}
    for ref, identity in image_ids.items():
        by_id.setdefault(identity, ref)
    captions = {text_id(c): c for _, tasks in suite.values() for t in tasks.values() for c in t.captions()}
    job = EncodingJob(get_encoder, store, batch_size, progress, share)
    job.images(by_id)
    job.texts(captions)
    barrier()
    store.reload()
    _drop(suite, _without_row(image_ids, store))
    if lost := len(store.missing("texts", captions)):
        raise DataError(
            f"{lost} captions have no embedding: another process of this run ended early, or files of the "
            "embedding store were removed meanwhile. Run it again: what is stored is kept"
        )
    _require_whole(suite, allow_partial)
    results = {}
    for benchmark, tasks in suite.values():
        outcomes = {
            name: task.score(
                lambda refs: store.get("images", [image_ids[ref] for ref in refs]),
                lambda texts: store.get("texts", [text_id(text) for text in texts]),
            )
            for name, task in tasks.items()
        }
        remarks = _remarks(tasks, image_ids, store)
        results[benchmark.name] = build_result(
            benchmark, tasks, outcomes, checkpoint=checkpoint, remarks=remarks
        )
        if on_result:
            on_result(results[benchmark.name])
    return Evaluation(results, skipped, dict(store.encoded))


def require_data(benchmarks: Sequence[str], data_root, *, allow_partial: bool = False) -> None:
    """Check, before a long run, that the benchmarks' data is there; images are looked for, not opened.

    Raises:
        MissingData, PartialData: as ``evaluate``. ValueError: unknown benchmark.
    """
    suite, _ = load_suite([get(name) for name in benchmarks], data_root, allow_partial=allow_partial)
    _require_whole(suite, allow_partial)


def load_suite(benchmarks: Iterable[Benchmark], data_root, *, allow_partial: bool):
    """Tasks of each benchmark, items with missing images dropped.

    Returns:
        ({name: (benchmark, tasks)}, {name: why it was skipped}).
    """
    suite: dict[str, tuple[Benchmark, dict[str, Task]]] = {}
    skipped: dict[str, str] = {}
    for benchmark in benchmarks:
        try:
            tasks = benchmark.load(Path(data_root))
        except DataError as error:
            if not allow_partial:
                raise
            named = str(error).startswith(benchmark.name)
            skipped[benchmark.name] = str(error) if named else f"{benchmark.name}: {error}"
            continue
        for task in tasks.values():
            refs = set(task.images())
            task.drop({ref: "image missing" for ref in refs if not ref.exists()})
        if any(task.items for task in tasks.values()):
            suite[benchmark.name] = (benchmark, tasks)
        elif allow_partial:
            skipped[benchmark.name] = _nothing_usable(benchmark, tasks)
        else:
            raise PartialData(
                f"{_nothing_usable(benchmark, tasks)}. Expected:\n  "
                + "\n  ".join(str(Path(data_root) / place) for place in benchmark.layout)
            )
    return suite, skipped


def _nothing_usable(benchmark: Benchmark, tasks: dict[str, Task]) -> str:
    reasons = sum((task.dropped for task in tasks.values()), Counter())
    if set(reasons) <= {"image missing"}:
        return f"{benchmark.name}: annotations found, but none of the images"
    first = next(name for task in tasks.values() for name in task.named)
    why = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    return f"{benchmark.name}: nothing there can be scored ({why}; the first: {first})"


def _identify(
    suite: dict, hashes: ContentHashes, share: tuple[int, int] = (0, 1)
) -> tuple[dict[ImageRef, str], dict[ImageRef, str]]:
    """(image -> identity, image -> why it has none), of this process's share of the images."""
    ids, unusable = {}, {}
    refs = dict.fromkeys(ref for _, tasks in suite.values() for t in tasks.values() for ref in t.images())
    for ref in list(refs)[share[0] :: share[1]]:
        try:
            ids[ref] = hashes(ref)
        except OSError:
            unusable[ref] = "image unreadable"
    return ids, unusable


def _without_row(image_ids: dict[ImageRef, str], store: EmbeddingStore) -> dict[ImageRef, str]:
    """The images that came to no embedding, by any process, and why."""
    return {
        ref: "image damaged" if identity in store.failed else "image unreadable"
        for ref, identity in image_ids.items()
        if not store.has("images", identity)
    }


def _drop(suite: dict, unusable: dict[ImageRef, str]) -> None:
    if unusable:
        for _, tasks in suite.values():
            for task in tasks.values():
                task.drop(unusable)


def _require_whole(suite: dict, allow_partial: bool) -> None:
    if allow_partial:
        return
    lines = []
    for benchmark, tasks in suite.values():
        lines += [f"{benchmark.name}/{name}: not there" for name in benchmark.expected if name not in tasks]
        for name, task in tasks.items():
            short = task.dropped if task.expected is None else len(task.items) != task.expected
            if (short or task.note) and (name in benchmark.expected or not benchmark.expected):
                why = ", ".join(f"{count} {reason}" for reason, count in task.dropped.items()) or task.note
                count = f"{len(task.items)} of {task.expected or '?'} items"
                first = f"; the first: {task.named[0]}" if task.named else ""
                lines.append(f"{benchmark.name}/{name}: {count} ({why}{first})")
    if lines:
        listed = "\n  ".join(lines)
        raise PartialData(
            f"the data is not complete:\n  {listed}\n"
            "Complete it, or score what is there with --allow-partial (in training --eval-allow-partial, in "
            "Python allow_partial=True); such results are labelled partial, apart from the paper's tables."
        )


def _remarks(tasks: dict[str, Task], image_ids: dict, store: EmbeddingStore) -> dict[str, int]:
    """How many of a benchmark's images are unusual, by kind; and how many there are."""
    identities = {image_ids[ref] for task in tasks.values() for ref in task.images()}
    counts = Counter(remark for identity in identities for remark in store.remarks.get(identity, ()))
    return {"unique": len(identities), **counts}
