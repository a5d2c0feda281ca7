"""Real hard negatives: for every pair of ordinary shards, its nearest different pair.

Reads img2dataset-style shards (jpg, txt, json) and writes paired shards, one for each it read. The
nearest pair's image and caption become ``neg.jpg`` and ``neg.txt``. Passed over as near-duplicates:
the same image bytes, a caption in common, and any similarity above ``--max-similarity``. The search
is exact unless ``--index`` is given; the same input and options give the same bytes.

  triplet-shards mine --input 'cc3m/{00000..00331}.tar' --output mined
  triplet-shards mine --input 'cc3m/{00000..00331}.tar' --output mined --model ViT-B-32 --pretrained openai
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from open_clip_triplet.errors import ShardError
from open_clip_triplet.files import write_text_durably
from open_clip_triplet.shards import IMAGE_SUFFIXES, ShardWriter, expand_shards, group_samples, write_sizes
from open_clip_triplet.tar import TarMembers, open_tar
from open_clip_triplet.tripletdata.backends import embed
from open_clip_triplet.tripletdata.backends.neighbours import nearest_different
from open_clip_triplet.tripletdata.run import folder
from open_clip_triplet.tripletdata.run.progress import bar

HELP = "real hard negatives: the nearest different pair of every pair"


@dataclass
class Pair:
    """One pair of the input. The image stays in its tar, at ``offset`` bytes."""

    key: str
    shard: str
    captions: list[str]
    suffix: str
    offset: int
    size: int
    digest: bytes
    meta: dict

    def image(self) -> bytes:
        with open(self.shard, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def read_pairs(shard: str, dropped: Counter) -> Iterator[Pair]:
    """The pairs of one local shard, images left in place. ``dropped`` counts what is unusable, by reason."""
    members_read = 0

    def take(members: TarMembers, number: int, suffix: str) -> tuple[bytes, int]:
        nonlocal members_read
        members_read += 1
        return members.read(), members.offset

    try:
        with open_tar(shard, in_place=True) as members:
            for sample in group_samples(members, shard, take):
                yield from _pair(shard, sample["__key__"], sample, dropped)
    except (ShardError, OSError) as error:
        if not members_read:
            raise SystemExit(f"{shard}: not a readable, uncompressed tar ({error})") from error
        dropped["shard damaged, rest lost"] += 1


def _pair(shard: str, key: str, parts: dict, dropped: Counter) -> Iterator[Pair]:
    suffix = next((name for name in IMAGE_SUFFIXES if name in parts), None)
    if suffix is None or "txt" not in parts:
        dropped["no image" if suffix is None else "no caption"] += 1
        return
    try:
        meta = json.loads(parts["json"][0]) if "json" in parts else {}
    except (ValueError, RecursionError):
        meta = {}
    meta = meta if isinstance(meta, dict) else {}
    text = parts["txt"][0].decode("utf-8", "replace").strip()
    captions = [c for c in meta.get("captions") or [] if isinstance(c, str) and c.strip()]
    captions = [text, *(c for c in captions if c != text)]
    data, offset = parts[suffix]
    if not text or not data:
        dropped["empty caption" if data else "empty image"] += 1
        return
    yield Pair(key, shard, captions, suffix, offset, len(data), hashlib.sha256(data).digest(), meta)


def is_duplicate(a: Pair, b: Pair) -> bool:
    """Whether two pairs show the same image file or share a caption (case and spacing aside)."""
    return a.digest == b.digest or not _words(a).isdisjoint(_words(b))


def _words(pair: Pair) -> set[str]:
    return {" ".join(caption.lower().split()).rstrip(".") for caption in pair.captions}


# --- command --------------------------------------------------------------------------------------


def paired_sample(pair: Pair, other: Pair, cosine: float, embedder: str) -> dict:
    """A paired sample; the pair's own json is kept, with captions and where the negative came from added."""
    return {
        "__key__": pair.key,
        pair.suffix: pair.image(),
        "txt": pair.captions[0],
        f"neg.{other.suffix}": other.image(),
        "neg.txt": other.captions[0],
        "json": {
            **pair.meta,
            "captions": pair.captions,
            "neg_captions": other.captions,
            "source_key": pair.key,
            "neg_source_key": other.key,
            "neg_source_shard": Path(other.shard).name,
            "similarity": round(float(cosine), 6),
            "embedder": embedder,
            "t2i": "mined",
        },
    }


def _embed_all(embedder, shards: list[list[Pair]], output: Path, progress: bool) -> np.ndarray:
    """Features [N, D] of all pairs. Those of models are kept in ``features/``, for a run that is repeated."""
    embedder.fit([pair.captions for pairs in shards for pair in pairs])
    blocks = []
    for number, pairs in enumerate(bar(shards, "embed", unit="shard", disable=not progress)):
        kept = output / "features" / f"{number:05d}.npy"
        if embedder.name != "captions" and kept.exists():
            blocks.append(np.load(kept, allow_pickle=False))
            continue
        images = [pair.image() for pair in pairs] if embedder.reads_images else []
        blocks.append(embedder([pair.captions for pair in pairs], images))
        if embedder.name != "captions":
            kept.parent.mkdir(parents=True, exist_ok=True)
            with open(kept.with_suffix(".tmp"), "wb") as file:
                np.save(file, blocks[-1])
            kept.with_suffix(".tmp").replace(kept)
    width = max(block.shape[1] for block in blocks)
    return np.concatenate([np.broadcast_to(block, (len(block), width)) for block in blocks])


def mine(
    inputs: list[str], output: Path, embedder, *, max_similarity: float = 0.95, device: str = "cpu",
    index: str | None = None, progress: bool = False,
) -> dict:
    """Write paired shards for ``inputs`` and return the counts, also written to ``mined.json``.

    Raises:
        SystemExit: an input cannot be read, or the folder was made with other options.
    """
    folder.claim(output, {
        "command": "mine", "inputs": {url: Path(url).stat().st_size for url in inputs},
        "embedder": embedder.name, "max_similarity": max_similarity, "index": index,
    })
    dropped: Counter = Counter()
    shards = [list(read_pairs(url, dropped)) for url in bar(inputs, "read", disable=not progress)]
    pairs = [pair for shard in shards for pair in shard]
    if len(pairs) < 2:
        raise SystemExit(f"{len(pairs)} usable pairs in {len(inputs)} shards: nothing to compare")
    features = _embed_all(embedder, [shard for shard in shards if shard], output, progress)
    found, cosine = nearest_different(
        features, lambda a, b: is_duplicate(pairs[a], pairs[b]), max_similarity, device, index, progress
    )
    unembedded = ~np.isfinite(features).all(axis=1)
    # img2dataset starts its keys again in every shard; a key must be one sample's in the whole set.
    repeated = len({pair.key for pair in pairs}) < len(pairs)
    sizes, first = {}, 0
    for number, shard in enumerate(bar(shards, "write", unit="shard", disable=not progress)):
        with ShardWriter(output / f"{number:05d}.tar") as writer:
            for me, pair in enumerate(shard, first):
                if found[me] >= 0:
                    sample = paired_sample(pair, pairs[found[me]], cosine[me], embedder.name)
                    if repeated:
                        sample["__key__"] = f"{number:05d}_{pair.key.replace('/', '_')}"
                    writer.write(sample)
                elif unembedded[me]:
                    dropped["not embeddable (image cannot be decoded, or no known word)"] += 1
                else:
                    dropped["every other pair is a near-duplicate"] += 1
        sizes[f"{number:05d}.tar"] = len(writer)
        first += len(shard)
    counts = {
        "pairs": len(pairs), "written": sum(sizes.values()), "dropped": dict(sorted(dropped.items())),
        "distinct_negatives": len(set(found[found >= 0].tolist())),
        "similarity_quartiles": [round(float(q), 4) for q in np.nanquantile(cosine, (0.25, 0.5, 0.75))],
    }
    write_sizes(output, sizes)
    write_text_durably(output / "mined.json", json.dumps(counts, indent=1) + "\n")
    return counts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", nargs="+", required=True, help="local shards, brace syntax allowed")
    parser.add_argument("--output", type=Path, required=True, help="folder for the paired shards")
    parser.add_argument("--embedder", default="captions", metavar="captions|FOLDER",
                        help="captions: TF-IDF of the captions, no weights needed (default). FOLDER: a "
                             "transformers sentence model")
    parser.add_argument("--model", help="an OpenCLIP model instead: mean of image and caption similarity")
    parser.add_argument("--pretrained", help="its weights: OpenCLIP's tag, or a checkpoint file")
    parser.add_argument("--max-similarity", type=float, default=0.95,
                        help="cosine from which a neighbour is a near-duplicate (%(default)s)")
    parser.add_argument("--index", metavar="FACTORY",
                        help="FAISS index to search in, e.g. IVF4096,Flat: for millions of pairs on CPUs")
    parser.add_argument("--device", default="cpu", help="torch device to embed and search on (%(default)s)")


def run(args: argparse.Namespace) -> int:
    inputs = expand_shards(args.input)
    missing = [url for url in inputs if not Path(url).is_file()]
    if missing:
        raise SystemExit(f"{missing[0]}: no such file ({len(missing)} of {len(inputs)} inputs are missing)")
    if args.pretrained and not args.model:
        raise SystemExit("--pretrained goes with --model NAME")
    embedder = embed.make_embedder(args.embedder, args.model, args.pretrained, args.device)
    counts = mine(inputs, args.output, embedder, max_similarity=args.max_similarity, device=args.device,
                  index=args.index, progress=True)
    low, median, high = counts["similarity_quartiles"]
    print(f"{args.output}: {counts['written']} of {counts['pairs']} pairs in {len(inputs)} shards")
    print(f"similarity of negatives: median {median:.2f}, half of them in {low:.2f}-{high:.2f}; "
          f"{counts['distinct_negatives']} distinct negatives")
    for reason, count in counts["dropped"].items():
        print(f"dropped {count}: {reason}")
    return 0
