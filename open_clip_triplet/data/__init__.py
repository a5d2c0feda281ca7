"""Paired shards as OpenCLIP's data: flags, checks, and the loader put together."""

from __future__ import annotations

import argparse
import logging
import os

from open_clip_triplet.data.captions import SAMPLING
from open_clip_triplet.data.epochs import SHUFFLE_BYTES, SHUFFLE_SAMPLES, EpochPlan
from open_clip_triplet.errors import ShardError
from open_clip_triplet.shards import expand_shards, normalise_ranges, read_sizes


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the paired pipeline."""
    group = parser.add_argument_group("paired data")
    group.add_argument(
        "--image-decoder",
        choices=("auto", "pil", "fast"),
        default="auto",
        help="pil: OpenCLIP's own transform, to the bit. fast: the same crops from libjpeg-turbo, uint8 to "
        "the device. auto (default): fast for a GPU where it can do all of --aug-cfg, else pil; the log says "
        "which.",
    )
    group.add_argument(
        "--same-crop",
        action="store_true",
        help="give the positive and the negative image of a sample the same random crop",
    )
    group.add_argument(
        "--caption-sampling",
        choices=SAMPLING,
        default="first",
        help="first: txt and neg.txt. random: one of the captions and neg_captions in json, "
        "drawn anew each epoch by seed and key.",
    )


def get_paired_dataset(args, preprocess_fn, is_train, epoch=0, tokenizer=None, *, method, as_dict=False, **_):
    """OpenCLIP's ``DataInfo`` over paired shards; stands in for its ``get_wds_dataset`` in training.

    Batches are grouped rows, see :mod:`open_clip_triplet.data.pipeline`; ``args.batch_size`` counts samples.

    Args:
        method: a row of ``losses.METHODS``; tells which negatives are read.
        as_dict: yield ``{"image", "text"}`` (OpenCLIP 4.x) instead of a pair.

    Raises:
        ShardError: a source lacks members that the method needs; unknown sizes; too few shards or samples.
    """
    from open_clip_train.data import DataInfo

    from open_clip_triplet.data.counts import Counts
    from open_clip_triplet.data.pipeline import Position, Rows
    from open_clip_triplet.data.reading import check_source

    if not is_train:
        raise ValueError("the paired pipeline is for training; validation data is read by OpenCLIP")
    images = _images(args, preprocess_fn)
    rows = Rows(
        images=images,
        tokenizer=tokenizer,
        seed=args.seed,
        roles=method.roles,
        negatives=getattr(args, "neg_captions", 1) if method.reads_neg_captions else 0,
        sampling=args.caption_sampling,
    )
    for source in _sources(args.train_data):
        check_source(
            expand_shards(source), method.roles, negatives=rows.negatives, reader=f"--loss {method.name}"
        )
    position = Position(epoch)
    loader = _loader(args, _plan(args, *_shards(args)), rows, Counts(max(1, args.workers)), position, as_dict)
    return DataInfo(dataloader=loader, shared_epoch=position)


def _loader(args, plan: EpochPlan, rows, counts, position, as_dict: bool):
    from torch.utils.data import DataLoader

    from open_clip_triplet.data.buffers import BatchBuffers
    from open_clip_triplet.data.device import ToDevice
    from open_clip_triplet.data.loader import PairedLoader
    from open_clip_triplet.data.pipeline import TrainingBatches

    buffers = BatchBuffers(args.workers, recycle=rows.images.normalize is not None)
    workers = DataLoader(
        TrainingBatches(plan, rows, counts, position, buffers, _shuffle_samples(plan)),
        batch_size=None,
        num_workers=args.workers,
        persistent_workers=args.workers > 0,
        pin_memory="cuda" in str(args.device),
    )
    return PairedLoader(
        workers,
        urls=plan.urls,
        counts=counts,
        position=position,
        buffers=buffers,
        finish=ToDevice(args.device, rows.images.normalize, as_dict=as_dict),
        num_batches=plan.batches,
        image_rows=plan.used * rows.image_group,
        total=sum(plan.sizes) if plan.exact else None,
        used=plan.used,
        rank=args.rank,
        reduce_device=args.device if getattr(args, "distributed", False) else None,
    )


def _images(args, preprocess):
    """The image decoder asked for, or under ``auto`` the right one, with the reason in the log."""
    from open_clip_triplet.data.images import FastImages, PilImages

    decoder, same_crop = args.image_decoder, args.same_crop
    reason = "as asked for"
    if decoder == "auto":
        decoder, reason = "pil", "the model on a CPU is slower than any decoder"
        if "cuda" in str(args.device):
            decoder, reason = "fast", "a GPU waits for images"
    try:
        images = (FastImages if decoder == "fast" else PilImages)(preprocess, same_crop=same_crop)
    except (ValueError, ImportError) as error:
        if args.image_decoder != "auto":
            from open_clip_triplet.errors import UsageError

            raise UsageError(str(error)) from error
        decoder, reason = "pil", str(error)
        images = PilImages(preprocess, same_crop=same_crop)
    if args.rank == 0:
        logging.info("Image decoder: %s (%s).", decoder, reason)
    return images


def _sources(spec) -> list:
    return normalise_ranges(spec).split("::") if isinstance(spec, str) else list(spec)


def _shards(args) -> tuple[list[str], list[float] | None]:
    """Urls of all sources, and for resampling the weight of each."""
    sources = [expand_shards(source) for source in _sources(args.train_data)]
    urls = [url for source in sources for url in source]
    factors = args.train_data_upsampling_factors
    if factors is None:
        return urls, None
    if not args.dataset_resampled:
        raise ShardError("--train-data-upsampling-factors needs --dataset-resampled")
    weights = [float(factor) for factor in factors.split("::")]
    if len(weights) != len(sources):
        raise ShardError(
            f"--train-data-upsampling-factors has {len(weights)} factors for {len(sources)} sources"
        )
    return urls, [weight for weight, source in zip(weights, sources) for _ in source]


def _plan(args, urls, weights) -> EpochPlan:
    sizes = read_sizes(urls)
    samples = args.train_num_samples or (sum(sizes) if sizes else None)
    if not samples:
        raise ShardError(
            f"The number of training samples is unknown: no sizes.json with all shards beside {urls[0]}. "
            "Give --train-num-samples, or write sizes.json (shard file name -> samples)."
        )
    accumulate = getattr(args, "accum_freq", 1)
    step = args.batch_size * args.world_size * accumulate
    if samples < step:
        raise ShardError(
            f"{samples:,} training samples are fewer than one global batch of {step:,} (--batch-size "
            f"{args.batch_size} x {args.world_size} processes x --accum-freq {accumulate})"
        )
    slots = max(1, args.workers) * args.world_size
    if sizes is None and not args.dataset_resampled and len(urls) < slots:
        raise ShardError(
            f"{len(urls)} shards for {slots} data workers ({args.workers} --workers x {args.world_size} "
            "processes): without sizes.json beside the shards each worker needs one of its own. "
            f"Use fewer --workers, or write sizes.json (shard file name -> samples)."
        )
    if sizes is None and not args.dataset_resampled and args.rank == 0:
        logging.warning(
            "No sizes.json with all shards: whole shards are dealt out to the workers, so an epoch may see "
            "some samples twice and others not at all."
        )
    return EpochPlan(
        urls=tuple(urls),
        sizes=tuple(sizes) if sizes else None,
        weights=tuple(weights) if weights else None,
        batch_size=args.batch_size,
        batches=samples // step * accumulate,
        seed=args.seed,
        rank=args.rank,
        world_size=args.world_size,
        workers=max(1, args.workers),
        resampled=bool(args.dataset_resampled),
    )


def _shuffle_samples(plan: EpochPlan) -> int:
    """Samples in a worker's shuffle buffer: OpenCLIP's number, or as many as hold in SHUFFLE_BYTES."""
    try:
        mean = os.path.getsize(plan.urls[0]) / plan.sizes[0]
    except (OSError, TypeError, ZeroDivisionError):
        return SHUFFLE_SAMPLES // 5
    return max(1, min(SHUFFLE_SAMPLES, int(SHUFFLE_BYTES / mean)))
