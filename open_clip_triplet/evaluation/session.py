"""One call of ``triplet-evaluate run``: device, processes, embedding store, the model only when needed."""

from __future__ import annotations

import datetime
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from open_clip_triplet.evaluation.checkpoints.load import CheckpointSpec, identify
from open_clip_triplet.evaluation.encode import Encoder
from open_clip_triplet.evaluation.images import ContentHashes, file_digest
from open_clip_triplet.evaluation.results import write_result
from open_clip_triplet.evaluation.run import Evaluation, run_suite
from open_clip_triplet.evaluation.store import EmbeddingStore
from open_clip_triplet.files import write_text_durably


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
    """Evaluate one checkpoint, write its results (rank 0), and say in a few lines what came out."""
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
    if session.rank == 0:
        print(_brief(spec.label, evaluation, session.output))
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


def _brief(label: str, evaluation: Evaluation, output: Path) -> str:
    encoded = evaluation.encoded
    lines = [
        f"{label}: encoded {encoded['images']} images and {encoded['texts']} captions"
        f" ({'nothing new' if not any(encoded.values()) else 'the rest was stored'})"
    ]
    for result in evaluation.results.values():
        lines.append("  " + _line(result))
    lines.append(f"  results in {output}")
    return "\n".join(lines)


def _line(result: dict) -> str:
    share = "" if result["complete"] else f"  PARTIAL: {result['items']} of {result['expected'] or '?'} items"
    overall = result["summary"].get("overall")
    if overall:
        text = f"{100 * overall['value']:.2f} [{100 * overall['low']:.2f}, {100 * overall['high']:.2f}]"
    else:
        text = "; ".join(
            _subset_text(name, subset) for name, subset in result["subsets"].items() if subset["items"]
        )
    ties = f", {result['ties']} ties" if result["ties"] else ""
    return f"{result['title']}: {text}{ties}{share}"


def _subset_text(name: str, subset: dict) -> str:
    metrics = subset["metrics"]
    chosen = [m for m in ("accuracy", "text", "image", "group", "i2t_r5", "t2i_r5", "top1") if m in metrics]
    return f"{name} " + " ".join(f"{m} {100 * metrics[m]['value']:.2f}" for m in chosen)
