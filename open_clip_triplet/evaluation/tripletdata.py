"""TripletData as a benchmark: Winoground's text, image and group score over paired shards.

This module needs only torch, numpy and PIL, so that training can call it between epochs.
Reference: Patel et al., NeurIPS 2024, arXiv:2411.02545, Tables 1 and 9, Figures 4 and 5.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from open_clip_triplet.errors import ImageError, ShardError
from open_clip_triplet.evaluation.encode import Encoder, decode_all, decoding_threads, evaluating, open_image
from open_clip_triplet.evaluation.metrics import composition_correct, histogram, wilson_interval
from open_clip_triplet.shards import by_role, expand_shards, read_meta, read_samples

ROLES = ("image", "text", "neg_image", "neg_text")


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
    """
    dropped: Counter[str] = Counter()
    encoder = Encoder(model, preprocess, tokenizer, device=device, autocast=autocast, input_dtype=input_dtype)
    parts, items = [], 0
    with evaluating(model), ThreadPoolExecutor(decoding_threads()) as pool:
        samples = decode_all(pool, lambda s: _prepare(s, preprocess), paired_samples(shard_urls, dropped))
        for batch in _batches(_kept(samples, dropped, max_samples), batch_size):
            images = encoder.images([image for sample in batch for image in sample[:2]])
            texts = encoder.texts([text for sample in batch for text in sample[2:]])
            parts.append(pair_similarities(images[0::2], images[1::2], texts[0::2], texts[1::2]))
            items += len(batch)
    if not items:
        reasons = (
            ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "the shards are empty"
        )
        raise ShardError(f"no sample with image, caption and their negatives to score ({reasons})")
    return {**summarise(np.concatenate(parts)), "dropped": dict(dropped)}


def pair_similarities(x0, x1, y0, y1) -> np.ndarray:
    """[n, 6] float64 similarities of n samples: s00, s01, s10, s11, image-image, caption-caption.

    Args:
        x0, x1: [n, D] positive and negative images, unit norm. y0, y1: [n, D] their captions.
    """
    pairs = ((x0, y0), (x0, y1), (x1, y0), (x1, y1), (x0, x1), (y0, y1))
    return np.stack([np.einsum("nd,nd->n", a, b, dtype=np.float64) for a, b in pairs], axis=1)


def summarise(similarities: np.ndarray) -> dict:
    """Scores, intervals, ties and histograms of ``pair_similarities``' [n, 6] rows."""
    s00, s01, s10, s11, image, text = similarities.T
    n = len(similarities)
    result: dict = {"items": n}
    for name, correct in composition_correct(s00, s01, s10, s11).items():
        result[f"{name}_score"] = float(correct.mean())
        result[f"{name}_score_interval"] = list(wilson_interval(int(correct.sum()), n))
    result["ties"] = int(((s00 == s01) | (s11 == s10) | (s00 == s10) | (s11 == s01)).sum())
    edges, image_counts = histogram(image)
    _, text_counts = histogram(text)
    result["histograms"] = {"edges": edges, "image": image_counts, "text": text_counts}
    return result


def paired_samples(shard_urls: str | Iterable[str], dropped: Counter) -> Iterator[dict]:
    """Whole samples (role names, bytes) of paired shards; the others are counted in ``dropped``."""
    for url in expand_shards(shard_urls):
        try:
            for sample in read_samples(url):
                yield from _if_whole(sample, dropped)
        except ShardError:
            dropped["shard damaged: the rest of it was not read"] += 1
        except OSError as error:
            raise ShardError(f"{url}: cannot be opened ({error})") from error


def _if_whole(sample: dict, dropped: Counter) -> Iterator[dict]:
    roles = by_role(sample)
    if "neg_text" not in roles:
        captions = read_meta(roles).get("neg_captions") or []
        if isinstance(captions, list) and captions and isinstance(captions[0], str):
            roles["neg_text"] = captions[0].encode("utf-8")
    missing = [role for role in ROLES if role not in roles]
    if missing:
        dropped["without " + " and ".join(missing)] += 1
    else:
        yield roles


def _prepare(roles: dict, preprocess) -> tuple | str:
    """(image, negative image, caption, negative caption) ready to batch, or why not."""
    try:
        texts = [roles[role].decode("utf-8").strip() for role in ("text", "neg_text")]
    except UnicodeDecodeError:
        return "caption not UTF-8"
    if not all(texts):
        return "caption empty"
    try:
        return (*(preprocess(open_image(roles[role])[0]) for role in ("image", "neg_image")), *texts)
    except ImageError:
        return "image damaged"
    except MemoryError:
        return "no memory to decode the image"


def _kept(samples: Iterable, dropped: Counter, limit: int | None) -> Iterator[tuple]:
    kept = 0
    for sample in samples:
        if isinstance(sample, str):
            dropped[sample] += 1
            continue
        yield sample
        kept += 1
        if kept == limit:
            return


def _batches(samples: Iterable, size: int) -> Iterator[list]:
    batch: list = []
    for sample in samples:
        batch.append(sample)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
