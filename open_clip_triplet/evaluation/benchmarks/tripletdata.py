"""TripletData as a benchmark: text, image and group score over paired shards.

``load`` indexes local shards for the suite; ``composition_scores`` streams shards from anywhere, as
training does between epochs. Both read samples by ``whole_sample`` and score by ``pair_outcome``.
Reference: Patel et al., NeurIPS 2024, Tables 1 and 9 (50,000 held-out samples of CC3M), Figures 4 and 5.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from open_clip_triplet.errors import ImageError, ShardError
from open_clip_triplet.evaluation.benchmarks.base import Benchmark, Headline, shard_samples
from open_clip_triplet.evaluation.encode import Encoder, evaluating
from open_clip_triplet.evaluation.images import open_image
from open_clip_triplet.evaluation.metrics import pair_similarities
from open_clip_triplet.evaluation.tasks import Pair, PairTask, pair_outcome
from open_clip_triplet.shards import expand_shards, read_meta, read_samples, read_sizes, rename_members
from open_clip_triplet.threads import map_ahead

FOLDERS = ("tripletdata", "tripletdata/val", "tripletdata/test")
IMAGES, TEXTS = ("image", "neg_image"), ("text", "neg_text")


def load(root: Path) -> dict[str, PairTask]:
    shards = next((s for f in FOLDERS if (s := sorted((root / f).glob("*.tar")))), [])
    if not shards:
        return {}
    sizes = read_sizes([str(shard) for shard in shards])
    task = PairTask([], expected=sum(sizes) if sizes else None)
    if sizes is None:
        task.note = "no sizes.json beside the shards: nobody can tell whether samples are missing"
    for shard, sample in shard_samples(shards, task):
        name = f"{shard.name}/{sample['__key__']}"
        try:
            fields = whole_sample(sample, lambda member: member.read())
        except ShardError as error:
            task.leave_out(str(error), name)
        else:
            task.items.append(Pair(name, (fields["image"], fields["neg_image"]), _captions(fields)))
    if task.expected is not None and len(task.items) + task.dropped.total() > task.expected:
        task.note = f"sizes.json says {task.expected}, the shards hold more"
        task.expected = None
    return {"tripletdata": task}


def whole_sample(sample: dict, read: Callable = bytes) -> dict:
    """A sample's two images, as they are, and its two captions, decoded.

    Args:
        sample: members by suffix, as shards are read. read: member -> bytes.

    Raises:
        ShardError: a part is missing, or a caption is empty or not UTF-8. Its text is the reason alone.
    """
    fields = rename_members(sample)
    found = {name: fields[name] for name in IMAGES if name in fields}
    for name in TEXTS:
        if name in fields:
            try:
                found[name] = read(fields[name]).decode("utf-8").strip()
            except UnicodeDecodeError as error:
                raise ShardError("caption not UTF-8") from error
    if "neg_text" not in found and "meta" in fields:
        captions = read_meta({"meta": read(fields["meta"])}).get("neg_captions")
        if isinstance(captions, list) and captions and isinstance(captions[0], str):
            found["neg_text"] = captions[0].strip()
    missing = [name for name in ("image", "text", "neg_image", "neg_text") if name not in found]
    if missing:
        raise ShardError("without " + " and ".join(missing))
    if not all(_captions(found)):
        raise ShardError("caption empty")
    return found


def _captions(fields: dict) -> tuple[str, str]:
    return fields["text"], fields["neg_text"]


def composition_scores(
    model,
    shard_urls,
    preprocess,
    tokenizer,
    device="cpu",
    batch_size: int = 64,
    autocast=None,
    max_samples: int | None = None,
    input_dtype=None,
) -> dict:
    """Text, image and group score of a model on paired shards, streamed: no shard is held in memory.

    Args:
        model: has ``encode_image`` and ``encode_text``; put in eval mode and back.
        shard_urls: brace syntax or a list; local paths, ``pipe:`` commands or remote urls.
        preprocess: PIL image -> [3, H, W].
        tokenizer: captions -> integer tensor [n, L].
        batch_size: samples per batch (two images and two captions each).
        autocast: function to a context manager, or None.
        max_samples: stop after that many scored samples.
        input_dtype: what images are cast to, as OpenCLIP's ``get_input_dtype`` gives for weights in
            low precision; None leaves them float32.

    Returns:
        ``text_score``, ``image_score``, ``group_score`` in 0..1; the same names with ``_interval``:
        Wilson 95% [low, high]; ``items``; ``ties`` (items where an equal similarity decided);
        ``dropped``: samples left out by reason; ``histograms``: cosine similarity of positive and
        negative per modality (``edges`` [101], ``image`` and ``text`` counts [100]).

    Raises:
        ShardError: a shard cannot be opened, or no sample has all four members.
        NonFiniteEmbeddings: the model gives NaN or infinity.
    """
    dropped: Counter[str] = Counter()
    encoder = Encoder(model, preprocess, tokenizer, device=device, autocast=autocast, input_dtype=input_dtype)
    parts = []
    with evaluating(model):
        samples = map_ahead(lambda s: _prepare(s, preprocess), paired_samples(shard_urls, dropped))
        kept = islice(_kept(samples, dropped), max_samples or None)
        while batch := list(islice(kept, batch_size)):
            images = encoder.images([image for sample in batch for image in sample[:2]])
            texts = encoder.texts([text for sample in batch for text in sample[2:]])
            parts.append(pair_similarities(images[0::2], images[1::2], texts[0::2], texts[1::2]))
    if not parts:
        reasons = (
            ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "the shards are empty"
        )
        raise ShardError(f"no sample with image, caption and their negatives to score ({reasons})")
    return {**summarise(np.concatenate(parts)), "dropped": dict(dropped)}


def summarise(similarities: np.ndarray) -> dict:
    """Scores, intervals, ties and histograms of ``pair_similarities``' [n, 6] rows."""
    outcome = pair_outcome(similarities)
    scores: dict = {"items": outcome.items, "ties": outcome.ties, "histograms": outcome.histograms}
    for name, metric in outcome.metrics.items():
        scores[f"{name}_score"] = metric["value"]
        scores[f"{name}_score_interval"] = [metric["low"], metric["high"]]
    return scores


def paired_samples(shard_urls: str | Iterable[str], dropped: Counter) -> Iterator[dict]:
    """``whole_sample`` of each sample of the shards; those that are not whole are counted in ``dropped``."""
    for url in expand_shards(shard_urls):
        try:
            for sample in read_samples(url):
                try:
                    fields = whole_sample(sample)
                except ShardError as error:
                    dropped[str(error)] += 1
                else:
                    yield fields
        except ShardError:
            dropped["shard damaged: the rest of it was not read"] += 1
        except OSError as error:
            raise ShardError(f"{url}: cannot be opened ({error})") from error


def _prepare(fields: dict, preprocess) -> tuple | str:
    """(image, negative image, caption, negative caption) ready to batch, or why not."""
    try:
        return (*(preprocess(open_image(fields[name])[0]) for name in IMAGES), *_captions(fields))
    except ImageError:
        return "image damaged"
    except MemoryError:
        return "no memory to decode the image"


def _kept(samples: Iterable, dropped: Counter) -> Iterator[tuple]:
    for sample in samples:
        if isinstance(sample, str):
            dropped[sample] += 1
        else:
            yield sample


BENCHMARK = Benchmark(
    name="tripletdata",
    title="TripletData",
    licence="your shards' own",
    source="triplet-shards builds paired shards; hold some out",
    layout=("tripletdata/*.tar (paired shards: jpg, txt, neg.jpg, neg.txt)",),
    loader=load,
    expected={},
    headlines=tuple(Headline(f"{s} score", s, "tripletdata") for s in ("text", "image", "group")),
    reference="Patel et al., NeurIPS 2024",
)
