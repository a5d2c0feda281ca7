"""One call of ``triplet-evaluate run``: device, processes, embedding store, the model only when needed."""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from open_clip_triplet.errors import UsageError
from open_clip_triplet.evaluation.benchmarks import Benchmark
from open_clip_triplet.evaluation.checkpoints.spec import CheckpointSpec, identify
from open_clip_triplet.evaluation.encode import Encoder
from open_clip_triplet.evaluation.hashes import ContentHashes
from open_clip_triplet.evaluation.result_files import claim_folders, write_result
from open_clip_triplet.evaluation.run.scoring import Evaluation, run_suite
from open_clip_triplet.evaluation.store import EmbeddingStore, store_key
from open_clip_triplet.evaluation.tasks import Outcome


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
    limit: int | None = None
    rank: int = 0
    world: int = 1
    barrier: Callable[[], object] = lambda: None
    hashes: ContentHashes = field(default_factory=ContentHashes)

    def label(self, spec: CheckpointSpec) -> str:
        """What results are called; those of a trial run do not replace the real ones."""
        return f"{spec.label}-limit{self.limit}" if self.limit else spec.label


def start(args: argparse.Namespace) -> Session:
    """A session from the command line; joins torchrun's processes where there are several.

    Raises:
        UsageError: the data root is not there, or an output folder cannot be written to.
    """
    root, output = Path(args.data_root), Path(args.output)
    if not root.is_dir():
        raise UsageError(f"--data-root {root}: no such folder; `triplet-evaluate data` says what goes in it")
    store = Path(args.store) if args.store else output / ".embeddings"
    for option, folder in (("--output", output), ("--store", store)):
        _require_writable(option, folder)
    session = Session(
        root,
        output,
        store,
        args.batch_size,
        args.device,
        args.allow_partial,
        progress=not args.quiet,
        limit=args.limit,
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
    session.progress &= session.rank == 0
    return session


def _require_writable(option: str, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"{option} {folder}: cannot be written to ({error.strerror or error})") from error


def identify_all(session: Session, specs: Sequence[CheckpointSpec]) -> list[dict[str, Any]]:
    """The facts that each checkpoint's embeddings depend on; before any of them is evaluated.

    Raises:
        CheckpointError: one is missing. UsageError: results of two would go to one folder.
    """
    facts = [identify(spec, session.hashes.digest) for spec in specs]
    session.hashes.save()
    claim_folders(session.output, [_describe(session, spec, fact) for spec, fact in zip(specs, facts)])
    return facts


def _describe(session: Session, spec: CheckpointSpec, facts: dict[str, Any]) -> dict[str, Any]:
    """What a result says of its checkpoint."""
    return {
        "name": session.label(spec),
        "model": spec.model or spec.pretrained,
        "pretrained": spec.pretrained,
        "weights": facts["weights"],
        "precision": spec.precision,
        "preprocessing": facts["preprocessing"],
        "force_image_size": spec.force_image_size,
    }


def run_checkpoint(
    session: Session,
    spec: CheckpointSpec,
    benchmarks: Sequence[Benchmark],
    facts: dict[str, Any] | None = None,
    show: Callable[[dict[str, Any]], object] = lambda result: None,
) -> Evaluation:
    """Evaluate one checkpoint; write (rank 0) and show each benchmark's result as soon as there is one.

    Args:
        facts: as ``identify_all`` gave them.
    """
    if facts is None:
        (facts,) = identify_all(session, [spec])
    store = EmbeddingStore(session.store, facts)
    # what is missing is dealt out by place in the list, so all must have opened the store before one adds
    session.barrier()
    checkpoint = {**_describe(session, spec, facts), "store": store_key(facts)}

    def on_result(result: dict[str, Any], outcomes: dict[str, Outcome]) -> None:
        write_result(session.output, result, outcomes)
        show(result)

    evaluation = run_suite(
        lambda: _load(session, spec),
        benchmarks,
        session.data_root,
        store,
        checkpoint=checkpoint,
        batch_size=session.batch_size,
        allow_partial=session.allow_partial,
        limit=session.limit,
        progress=session.progress,
        hashes=session.hashes,
        share=(session.rank, session.world),
        barrier=session.barrier,
        on_result=on_result if session.rank == 0 else None,
    )
    session.barrier()
    return evaluation


def _load(session: Session, spec: CheckpointSpec) -> Encoder:
    import torch

    from open_clip_triplet.evaluation.checkpoints.load import load

    local = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    device = session.device or local
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter where torch is built without CUDA
        raise UsageError(f"--device {device}: {str(error).splitlines()[0]}") from error
    if session.rank == 0 and session.progress:
        print(f"loading {spec.label} on {device}", file=sys.stderr)
    loaded = load(spec, device)
    return Encoder(
        loaded.model,
        loaded.preprocess,
        loaded.tokenizer,
        device=device,
        autocast=loaded.autocast,
        input_dtype=loaded.input_dtype,
        name=f"{spec.label} in {spec.precision}",
    )
