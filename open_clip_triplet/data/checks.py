"""What can be known of the training shards before training: members, sizes, the order of their members."""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice

from open_clip_triplet.data.captions import negative_captions
from open_clip_triplet.data.reading import read_shard, with_retries
from open_clip_triplet.errors import MembersMissing, ShardError
from open_clip_triplet.files import is_remote
from open_clip_triplet.shards import read_meta, read_samples, read_sizes, rename_members

#: local shards of a source that are looked at, and samples in each of them; more in the first
SHARDS_CHECKED, SAMPLES_CHECKED, SAMPLES_CHECKED_IN_FIRST = 64, 64, 4096
#: remote shards that are tried until one can be read
REMOTE_CHECKED = 3
#: a rewriter may have kept fewer captions of one sample, hardly of so many
CAPTIONS_CHECKED = 8
SHOWN = {"image": "jpg", "text": "txt", "neg_image": "neg.jpg", "neg_text": "neg.txt", "meta": "json"}


def check_sources(
    sources: Sequence[Sequence[str]], fields: Sequence[str], *, negatives: int, reader: str,
    names: Mapping[str, str], max_bad: float,
) -> None:
    """Check samples of each source's local shards, all or evenly spaced, or of its first remote one.

    Only names are read, but of the first samples' captions. A shard that cannot be read is only warned of,
    as long as another one can: training counts what it loses there.

    Args:
        negatives: different negative captions that are wanted of a sample.
        reader: what reads the shards, for messages. max_bad: the share of samples that may lack a member.

    Raises:
        MembersMissing: samples lack ``fields``, or ``negatives`` different negative captions.
        ShardError: no shard can be read; members of a sample are not side by side.
    """

    def check(url: str, number: int) -> None:
        _check_members(url, fields, number, reader=reader, names=names, max_bad=max_bad)
        if negatives > 1:
            _check_negatives(url, negatives, reader=reader, names=names)

    readable, failures = 0, []
    for urls in sources:
        local = [url for url in urls if not is_remote(url)]
        for place, url in enumerate(local[:: -(-len(local) // SHARDS_CHECKED) or 1] or urls[:REMOTE_CHECKED]):
            number = SAMPLES_CHECKED if place or is_remote(url) else SAMPLES_CHECKED_IN_FIRST
            try:
                with_retries(functools.partial(check, url, number), url)
                readable += 1
                if not local:
                    break
            except MembersMissing:
                raise
            except (OSError, ShardError) as error:
                logging.warning("%s", error)
                failures.append(str(error))  # the error itself would keep this frame alive
    if not readable:
        raise ShardError(f"none of the {len(failures):,} shards looked at can be read: {failures[0]}")


def known_sizes(urls: Sequence[str]) -> tuple[list[int] | None, str]:
    """Samples per shard, or None and a sentence on which shards sizes.json lacks.

    Raises:
        ShardError: a store cannot be reached; without sizes the samples would come in another order.
    """
    unknown: list[str] = []
    try:
        sizes = with_retries(functools.partial(read_sizes, urls, unknown), next(filter(is_remote, urls), urls[0]))
    except OSError as error:
        raise ShardError(str(error)) from error
    if len(unknown) == len(urls):
        return None, f"there is no sizes.json beside {urls[0]}"
    more = f" and {len(unknown) - 1:,} more" if len(unknown) > 1 else ""
    return sizes, f"sizes.json lacks {unknown[0]}{more}" if unknown else ""


def _check_members(
    url: str, fields: Sequence[str], number: int, *, reader: str, names: Mapping[str, str], max_bad: float
) -> None:
    looked_at, keys = 0, set()
    lacking: Counter = Counter()
    example: dict = {}
    try:
        for sample in islice(read_samples(url, lambda members, index, suffix: b""), number):
            missing = [name for name in fields if name not in rename_members(sample, names)]
            if missing and sample["__key__"] in keys:
                raise MembersMissing(
                    f"{url}: members of a sample are not adjacent ({sample['__key__']!r} comes again later): "
                    "sort the archive by name, e.g. tar --sort=name."
                )
            keys.add(sample["__key__"])
            looked_at += 1
            lacking.update(missing)
            example = example or (sample if missing else {})
    except ShardError as error:
        if isinstance(error, MembersMissing) or not looked_at:
            raise
    if not looked_at:
        raise ShardError(f"{url}: holds no sample")
    if not lacking:
        return
    shown = " and ".join(SHOWN[name] for name in fields if lacking[name])
    found = ", ".join(sorted(name for name in example if not name.startswith("__")))
    worst = max(lacking.values())
    message = (
        f"{reader} reads {shown}, which {worst:,} of the {looked_at:,} samples looked at in {url} lack "
        f"({example['__key__']!r} has: {found})."
    )
    if worst <= max_bad * looked_at:
        logging.warning("%s They are dropped, and counted.", message)
        return
    raise MembersMissing(f"{message} Build paired shards with triplet-shards, or use --loss clip.")


def _check_negatives(url: str, number: int, *, reader: str, names: Mapping[str, str]) -> None:
    """The first samples of a shard have so many different negative captions, one of them at least."""
    found = 0
    for _, sample in islice(read_shard(url, ("neg_text", "meta"), names), CAPTIONS_CHECKED):
        if "neg_text" in sample:
            text = sample["neg_text"].decode("utf-8", "replace")
            found = max(found, len(negative_captions(text, read_meta(sample))))
    if found < number:
        raise MembersMissing(
            f"{reader} with --neg-captions {number}: the first samples of {url} have at most {found} "
            "different negative captions (neg.txt and neg_captions in json). Build shards with more, or "
            f"use --neg-captions {max(found, 1)}."
        )
