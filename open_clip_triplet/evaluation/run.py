"""Running benchmarks on one model: load, encode what is new, score, build the results.

``evaluate`` takes a model in memory; ``start`` and ``run_checkpoint`` are one call of
``triplet-evaluate run``: device, processes, embedding store, the model only where something is new.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from open_clip_triplet.errors import DataError
from open_clip_triplet.evaluation.benchmarks import Benchmark, get
from open_clip_triplet.evaluation.checkpoints.load import CheckpointSpec, identify
from open_clip_triplet.evaluation.encode import Encoder, EncodingJob, evaluating
from open_clip_triplet.evaluation.images import ContentHashes, ImageRef, file_digest
from open_clip_triplet.evaluation.results import build_result, flat_metrics, write_result
from open_clip_triplet.evaluation.store import EmbeddingStore, text_id
from open_clip_triplet.evaluation.suite import Suite, drop_images, load_suite, require_whole
from open_clip_triplet.evaluation.tasks import Task
from open_clip_triplet.files import write_text_durably


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
    drop_images(suite, unusable)
    require_whole(suite, allow_partial)
    by_id: dict[str, ImageRef] = {}
    for ref, identity in image_ids.items():
        by_id.setdefault(identity, ref)
    captions = {text_id(c): c for _, tasks in suite.values() for t in tasks.values() for c in t.captions()}
    job = EncodingJob(get_encoder, store, batch_size, progress, share)
    job.images(by_id)
    job.texts(captions)
    barrier()
    store.reload()
    drop_images(suite, _without_row(image_ids, store))
    if lost := len(store.missing("texts", captions)):
        raise DataError(
            f"{lost} captions have no embedding: another process of this run ended early, or files of the "
            "embedding store were removed meanwhile. Run it again: what is stored is kept"
        )
    require_whole(suite, allow_partial)
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


def _identify(
    suite: Suite, hashes: ContentHashes, share: tuple[int, int] = (0, 1)
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


def _remarks(tasks: dict[str, Task], image_ids: dict, store: EmbeddingStore) -> dict[str, int]:
    """How many of a benchmark's images are unusual, by kind; and how many there are."""
    identities = {image_ids[ref] for task in tasks.values() for ref in task.images()}
    counts = Counter(remark for identity in identities for remark in store.remarks.get(identity, ()))
    return {"unique": len(identities), **counts}


@dataclass
class Session:
    """What all checkpoints of a call share. ``rank`` 0 writes; every rank encodes its share."""

    data_root: Path
    output: Path
    store: Path
    batch_size: int
    device: str | None
    allow_partial: bool
    progress: bool
    rank: int = 0
    world: int = 1
    barrier: Callable[[], None] = lambda: None
    hashes: ContentHashes = field(default_factory=ContentHashes)


def start(args) -> Session:
    """A session from the command line; joins torchrun's processes where there are several.

    Raises:
        ValueError: the data root is not there.
    """
    root, output = Path(args.data_root), Path(args.output)
    if not root.is_dir():
        raise ValueError(f"--data-root {root}: no such folder; `triplet-evaluate data` says what goes in it")
    store = Path(args.store) if args.store else output / ".embeddings"
    session = Session(
        root,
        output,
        store,
        args.batch_size,
        args.device,
        args.allow_partial,
        progress=not args.quiet,
        rank=int(os.environ.get("RANK", 0)),
        world=int(os.environ.get("WORLD_SIZE", 1)),
    )
    # each rank keeps its own memory of hashes: they would overwrite one another's
    suffix = f"-{session.rank}" if session.rank else ""
    session.hashes = ContentHashes(store / f"files{suffix}.json")
    if session.world > 1:
        import torch

        # ranks wait for the slowest at every barrier; the default, half an hour, is less than ImageNet takes
        torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(days=1))
        session.barrier = torch.distributed.barrier
    session.progress &= session.rank == 0 and sys.stderr.isatty()
    return session


def run_checkpoint(session: Session, spec: CheckpointSpec, benchmarks: list) -> Evaluation:
    """Evaluate one checkpoint, write its results (rank 0)."""
    facts = identify(spec, _remembered_digest(session))
    store = EmbeddingStore(session.store, facts)
    # what is missing is dealt out by place in the list, so all must have opened the store before one adds
    session.barrier()
    checkpoint = {
        "name": spec.label,
        "model": spec.model,
        "pretrained": spec.pretrained,
        "weights": facts["weights"],
        "precision": spec.precision,
        "preprocessing": facts["preprocessing"],
        "store": store.folder.name,
    }
    evaluation = run_suite(
        lambda: _load(session, spec),
        benchmarks,
        session.data_root,
        store,
        checkpoint=checkpoint,
        batch_size=session.batch_size,
        allow_partial=session.allow_partial,
        progress=session.progress,
        hashes=session.hashes,
        share=(session.rank, session.world),
        barrier=session.barrier,
        on_result=partial(write_result, session.output) if session.rank == 0 else None,
    )
    session.barrier()
    return evaluation


def _load(session: Session, spec: CheckpointSpec) -> Encoder:
    from open_clip_triplet.evaluation.checkpoints.load import load

    device = session.device or _default_device()
    if session.progress:
        print(f"loading {spec.label} on {device}", file=sys.stderr)
    loaded = load(spec, device)
    return Encoder(
        loaded.model,
        loaded.preprocess,
        loaded.tokenizer,
        device=device,
        autocast=loaded.autocast,
        input_dtype=loaded.input_dtype,
    )


def _default_device() -> str:
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}"


def _remembered_digest(session: Session) -> Callable[[Path], str]:
    """SHA-256 of weight files, remembered by path, size and time of change (gigabytes take seconds)."""
    memory = session.store / "weights.json"
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}

    def digest(path: Path) -> str:
        stat = path.stat()
        where = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
        if where not in known:
            known[where] = file_digest(path)
            if session.rank == 0:
                write_text_durably(memory, json.dumps(known))
        return known[where]

    return digest
