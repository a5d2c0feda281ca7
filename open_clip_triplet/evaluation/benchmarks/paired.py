"""TripletData as a benchmark: text, image and group score over local paired shards.

Reference: Patel et al., NeurIPS 2024, Tables 1 and 9 (50,000 held-out samples of CC3M).
"""

from __future__ import annotations

from pathlib import Path

from open_clip_triplet.evaluation.benchmarks.base import Benchmark, shard_samples
from open_clip_triplet.evaluation.images import ImageRef
from open_clip_triplet.evaluation.tasks import Pair, PairTask
from open_clip_triplet.shards import by_role, read_meta, read_sizes

FOLDERS = ("tripletdata", "tripletdata/val", "tripletdata/test")


def load(root: Path) -> dict[str, PairTask]:
    shards = next((s for f in FOLDERS if (s := sorted((Path(root) / f).glob("*.tar")))), [])
    if not shards:
        raise BENCHMARK.missing(root)
    sizes = read_sizes([str(shard) for shard in shards])
    task = PairTask([], expected=sum(sizes) if sizes else None)
    if sizes is None:
        task.note = "no sizes.json beside the shards: nobody can tell whether samples are missing"
    for shard, sample in shard_samples(shards, task):
        _append(task, sample, shard)
    return {"tripletdata": task}


def _append(task: PairTask, sample: dict, shard: Path) -> None:
    name = f"{shard.name}/{sample['__key__']}"
    roles: dict[str, ImageRef] = by_role(sample)
    texts = [_text(roles, role) for role in ("text", "neg_text")]
    if "image" not in roles or "neg_image" not in roles or not all(texts):
        task.leave_out("not a whole sample", name)
    else:
        task.items.append(Pair(name, (roles["image"], roles["neg_image"]), tuple(texts)))


def _text(roles: dict, role: str) -> str:
    try:
        if role in roles:
            return roles[role].read().decode("utf-8").strip()
        if role == "neg_text" and "meta" in roles:
            first = (read_meta({"meta": roles["meta"].read()}).get("neg_captions") or [""])[0]
            return first if isinstance(first, str) else ""
    except (UnicodeDecodeError, KeyError, TypeError, IndexError):
        pass
    return ""


BENCHMARK = Benchmark(
    name="tripletdata",
    title="TripletData",
    licence="your shards' own",
    source="tools/make_shards.py builds paired shards; hold some out",
    layout=("tripletdata/*.tar (paired shards: jpg, txt, neg.jpg, neg.txt)",),
    load=load,
    expected={},
    reference="Patel et al., NeurIPS 2024",
)
