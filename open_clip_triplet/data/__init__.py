"""Paired shards as OpenCLIP's training data: :func:`get_paired_dataset` puts stream, pipeline and loader together."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable, Mapping

from open_clip_triplet.data.captions import CaptionChoice
from open_clip_triplet.data.checks import check_sources, known_sizes
from open_clip_triplet.data.device import ToDevice
from open_clip_triplet.data.group import HostGroup
from open_clip_triplet.data.images import FastImages, PilImages
from open_clip_triplet.data.loader import PairedLoader
from open_clip_triplet.data.pipeline import SampleTransform, StreamPieces
from open_clip_triplet.data.reading import ShardWatch
from open_clip_triplet.data.state import continued, order_of
from open_clip_triplet.data.stream import Dealing, StreamPlan, shuffle_samples
from open_clip_triplet.errors import CheckpointError, ShardError, UsageError
from open_clip_triplet.files import local_path
from open_clip_triplet.shards import FIELDS, expand_shards, normalise_ranges


def get_paired_dataset(
    args, preprocess_fn, is_train, epoch=0, tokenizer=None, *, method, as_dict=False, saved=None,
    stopping: Callable[[], bool] = lambda: False,
):
    """OpenCLIP's ``DataInfo`` over paired shards; stands in for its ``get_wds_dataset`` in training.

    Batches are grouped rows, see :mod:`open_clip_triplet.data.pipeline`; ``args.batch_size`` counts samples.

    Args:
        method: a row of ``losses.METHODS``; tells which negatives are read.
        as_dict: yield ``{"image", "text"}`` (OpenCLIP 4.x) instead of a pair.
        saved: the stream's state in a checkpoint (``StreamState.export``), or None.
        stopping: asked before every optimizer step; True ends the epoch there, on all ranks alike.

    Raises:
        ShardError: a source lacks members that the method needs; unknown sizes; too few samples.
        UsageError: streams, ranks or stages that do not fit.
    """
    from open_clip_train.data import DataInfo

    transform = _transform(args, preprocess_fn, tokenizer, method)
    sources = [expand_shards(source) for source in normalise_ranges(args.train_data).split("::")]
    check_sources(
        sources, transform.fields, negatives=transform.captions.negatives, reader=f"--loss {method.name}",
        names=transform.names, max_bad=args.max_bad_fraction,
    )
    plan, state = continued(_plan(args, sources, saved), saved, epoch=epoch, log=args.rank == 0)
    samples = args.train_num_samples or sum(plan.sizes or ())
    global_batch = args.batch_size * args.world_size * args.accum_freq
    if samples < global_batch:
        raise ShardError(
            f"{samples:,} training samples are fewer than one global batch of {global_batch:,} (--batch-size "
            f"{args.batch_size} x {args.world_size} processes x --accum-freq {args.accum_freq})"
        )
    group = HostGroup()
    orders, starts = map(set, zip(*group.gather((
        (plan.shuffle, *order_of(plan).values()), (state.step, *state.positions),
    ))))
    if len(orders) > 1:
        raise ShardError("processes see different training data: other shards, sizes or sizes.json. Give every machine "
                         "the same.")
    if len(starts) > 1:
        raise CheckpointError(f"processes resumed from {len(starts)} different checkpoints: one of them could not read "
                              "the newest. Name the checkpoint: --resume FILE")
    per_rank = plan.streams // args.world_size
    own = range(args.rank * per_rank, (args.rank + 1) * per_rank)
    pieces = StreamPieces(
        plan, Dealing(global_batch, plan.streams, args.accum_freq), transform, ShardWatch(per_rank, len(plan.urls)),
        own, tuple(state.positions), state.step,
        stages=tuple(map(load_stage, args.data_stage)), max_bad=args.max_bad_fraction,
    )
    loader = PairedLoader(
        pieces, workers=_workers(args, per_rank), state=state, batch_size=args.batch_size,
        finish=ToDevice(args.device, transform.images.normalize, as_dict=as_dict),
        num_batches=samples // global_batch * args.accum_freq, group=group, rank=args.rank,
        pin_memory="cuda" in str(args.device), stopping=stopping,
    )
    return DataInfo(dataloader=loader, shared_epoch=loader)


def load_stage(name: str) -> Callable:
    """The data stage ``module:function``; modules are also looked for in the current folder.

    Raises:
        UsageError: there is no such module or function.
    """
    module, _, function = name.partition(":")
    if not function:
        raise UsageError(f"--data-stage {name}: give module:function")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        stage = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"--data-stage {name}: {error}. Give module:function.") from error
    if not callable(stage):
        raise UsageError(f"--data-stage {name}: {function} is not a function")
    return stage


def field_names(args) -> Mapping[str, str]:
    """Member suffix to field, with OpenCLIP's ``--image-key`` and ``--text-key`` where they are given (4.x)."""
    images, texts = getattr(args, "image_key", None), getattr(args, "text_key", None)
    names: dict[str, str] = {}
    if images and images != "jpg;png;jpeg;webp":
        names |= {suffix: "image" for suffix in _split_keys(images)}
        names |= {f"neg.{suffix}": "neg_image" for suffix in _split_keys(images)}
    if texts and texts != "txt":
        names |= {suffix: "text" for suffix in _split_keys(texts)}
    given = set(names.values())
    return {**names, **{suffix: name for suffix, name in FIELDS.items() if name not in given}}


def _transform(args, preprocess, tokenizer, method):
    keys, probs = getattr(args, "json_text_key", None), getattr(args, "json_text_key_probs", None)
    captions = CaptionChoice(
        args.caption_sampling, args.neg_captions if method.reads_neg_captions else 0,
        _split_keys(keys or ""), tuple(probs) if probs else None,
        paraphrases=int(getattr(args, "paraphrase_weight", 0) > 0), units=getattr(args, "units", 0),
    )
    fields = tuple("meta" if name == "text" and keys else name for name in method.fields)
    return SampleTransform(
        _images(args, preprocess), tokenizer, fields, captions, seed=args.seed, names=field_names(args)
    )


def _split_keys(keys: str) -> tuple[str, ...]:
    return tuple(key.strip() for key in keys.split(";") if key.strip())


def _images(args, preprocess):
    """The image decoder asked for, or under ``auto`` the right one, with the reason in the log."""
    decoder, reason = args.image_decoder, "as asked for"
    options = {"same_crop": args.same_crop, "max_pixels": getattr(args, "max_image_pixels", 0) or None}
    if decoder == "auto":
        decoder, reason = "pil", "the model on a CPU is slower than any decoder"
        if "cuda" in str(args.device):
            decoder, reason = "fast", "a GPU waits for images"
    try:
        images = (FastImages if decoder == "fast" else PilImages)(preprocess, **options)
    except (ValueError, ImportError) as error:
        if args.image_decoder != "auto":
            raise UsageError(str(error)) from error
        decoder, reason = "pil", str(error)
        images = PilImages(preprocess, **options)
    if args.rank == 0:
        logging.info("Image decoder: %s (%s).", decoder, reason)
    return images


def _weights(args, sources: list[list[str]]) -> tuple[float, ...] | None:
    """For resampling, the weight of each shard."""
    factors = args.train_data_upsampling_factors
    if factors is None:
        return None
    if not args.dataset_resampled:
        raise UsageError("--train-data-upsampling-factors needs --dataset-resampled")
    try:
        weights = [float(factor) for factor in factors.split("::")]
    except ValueError as error:
        raise UsageError(f"--train-data-upsampling-factors {factors}: {error}") from error
    if len(weights) != len(sources):
        raise UsageError(f"--train-data-upsampling-factors has {len(weights)} factors for {len(sources)} sources")
    return tuple(weight for weight, source in zip(weights, sources) for _ in source)


def _plan(args, sources: list[list[str]], saved: dict | None) -> StreamPlan:
    urls, weights = [url for source in sources for url in source], _weights(args, sources)
    sizes, why = known_sizes(urls)
    if sizes is None and not args.train_num_samples:
        raise ShardError(
            f"The number of training samples is unknown: {why}. "
            "Give --train-num-samples, or write sizes.json (shard file name -> samples)."
        )
    if sizes is None and not args.dataset_resampled and args.rank == 0:
        logging.warning("Whole shards are dealt out to the data streams, because %s.", why)
    # what can be dealt out: a stream without a sample of its own has nothing to give
    most = sys.maxsize if args.dataset_resampled else sum(sizes) if sizes else len(urls)
    streams = _streams(args, saved, most)
    return StreamPlan(
        urls=tuple(urls), sizes=tuple(sizes) if sizes else None, streams=streams, seed=args.seed,
        shuffle=shuffle_samples(streams, _mean_bytes(urls[0], sizes)), resampled=bool(args.dataset_resampled),
        weights=weights,
    )


def _mean_bytes(url: str, sizes) -> float | None:
    try:
        return os.path.getsize(local_path(url)) / sizes[0]
    except (OSError, TypeError, ZeroDivisionError):
        return None


def _streams(args, saved: dict | None, most: int) -> int:
    """P: as asked for, or the checkpoint's, or one for each worker of each rank.

    Raises:
        UsageError: the ranks cannot share them; says what would do.
    """
    world, asked = args.world_size, args.data_streams or (saved or {}).get("streams")
    if asked is None:
        asked = world * min(max(1, args.workers), most // world)
    source = "--data-streams" if args.data_streams else "the checkpoint's --data-streams"
    if asked % world or not asked:
        divisors = [str(n) for n in range(1, asked + 1) if asked % n == 0]
        raise UsageError(
            f"{source} {asked} cannot be shared out to {world} processes. Use {' or '.join(divisors)} processes, "
            f"or --data-streams {asked // world * world or world}, under which the order of samples is another."
            if asked else f"{most} shards are too few for {world} processes without sizes.json."
        )
    if asked > most:
        raise UsageError(f"{source} {asked}: there is data for {most} streams.")
    return asked


def _workers(args, streams: int) -> int:
    """Workers of a rank: as many as asked for, or fewer, so that they divide its streams."""
    fit = next((n for n in range(min(args.workers, streams), 0, -1) if streams % n == 0), 0)
    if fit < args.workers and args.rank == 0:
        logging.info("--workers %d: %d are used, which share out %d data streams evenly.",
                     args.workers, fit, streams)
    return fit
