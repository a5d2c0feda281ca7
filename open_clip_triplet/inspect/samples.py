"""Samples to look at: whole, the first N, or N at random, read without the images that are not shown."""

from __future__ import annotations

import bisect
import itertools
import random
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from open_clip_triplet.errors import ShardError, UsageError
from open_clip_triplet.files import join, list_files
from open_clip_triplet.shards import expand_shards, read_meta, read_samples, read_sizes, rename_members
from open_clip_triplet.tar import TarMembers

#: keys of ``json`` that hold a number worth sorting by end in one of these, or are under ``scores``
SCORE_ENDINGS = ("score", "similarity", "accuracy", "margin", "cosine")


@dataclass
class ViewSample:
    """One sample as a person looks at it.

    ``captions`` and ``neg_captions`` start with the one in ``txt`` and ``neg.txt``. ``facets`` are
    few-valued facts to filter by, ``scores`` numbers to sort by, ``notes`` lines to read, ``details`` the rest.
    ``similarities``: by checkpoint, rows of the image and the negative image, columns of their captions.
    ``left_out``: why it is not scored.
    """

    key: str
    shard: str
    captions: list[str]
    neg_captions: list[str]
    image: bytes | None = None
    neg_image: bytes | None = None
    neg_categories: list[str] = field(default_factory=list)
    facets: dict[str, str] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    similarities: dict[str, list[list[float]]] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    left_out: str = ""

    @property
    def category(self) -> str:
        return self.facets.get("category", "")


def find_shards(specs: str | Sequence[str]) -> list[str]:
    """Shard urls of folders and of OpenCLIP's brace syntax.

    Raises:
        ShardError: a folder without shards.
    """
    found: list[str] = []
    for url in expand_shards(specs):
        if url.startswith("pipe:") or PurePosixPath(url).suffix in (".tar", ".gz", ".tgz"):
            found.append(url)
            continue
        shards = _in_folder(url)
        if not shards:
            raise ShardError(f"{url}: holds no .tar; name a folder of shards, or shards in brace syntax")
        found += shards
    return found


def _in_folder(url: str) -> list[str]:
    return [join(url, name) for name in list_files(url) if name.endswith(".tar")]


def read_view_samples(
    shards: Sequence[str],
    *,
    sample: int | None = None,
    first: int | None = None,
    seed: int = 0,
    images: bool = True,
    check: Callable[[dict], str] | None = None,
) -> Iterator[ViewSample]:
    """Samples of shards in their order.

    Args:
        sample: so many, drawn at random with ``seed`` from all the shards hold.
        first: stop after so many.
        images: False leaves the images' bytes out.
        check: a sample's members by suffix -> why it is not scored, or an empty text.

    Raises:
        ShardError: a shard cannot be opened, or no shard holds a sample. A damaged shard gives the samples
            before the damage, with one line on stderr.
    """
    numbers = None
    if sample is not None:
        sizes = read_sizes(list(shards)) or [sum(1 for _ in read_some(url, frozenset())) for url in shards]
        numbers = sorted(random.Random(seed).sample(range(sum(sizes)), min(sample, sum(sizes))))
        starts = list(itertools.accumulate(sizes, initial=0))
    found = 0
    for place, url in enumerate(shards):
        wanted = None
        if numbers is not None:
            low, high = (bisect.bisect_left(numbers, starts[place + n]) for n in (0, 1))
            wanted = {number - starts[place] for number in numbers[low:high]}
            if not wanted:
                continue
        for number, one in enumerate(read_some(url, wanted, images=images)):
            if wanted is not None and number not in wanted:
                continue
            viewed = view_sample(one)
            viewed.left_out = check(one) if check else ""
            yield viewed
            found += 1
            if found == first:
                return
    if not found:
        raise ShardError(f"{', '.join(shards[:2])}: no sample in {len(shards)} shards")


def read_some(
    url: str, wanted: Collection[int] | None = None, *, images: bool = True, quiet: bool = False
) -> Iterator[dict]:
    """Samples of a shard; those that are not ``wanted`` (by number; None: all are) come without members.

    A damaged shard ends at the damage, told on stderr unless ``quiet``.

    Raises:
        ShardError: it cannot be opened.
    """

    def take(members: TarMembers, number: int, suffix: str) -> bytes | None:
        text = suffix.endswith(("txt", "json", "caption"))
        return members.read() if (wanted is None or number in wanted) and (images or text) else None

    try:
        yield from read_samples(url, take)
    except ShardError as error:
        if not quiet:
            print(f"{error}; the samples before the damage are shown", file=sys.stderr)
    except OSError as error:
        raise ShardError(f"{url}: cannot be opened ({error.strerror or error})") from error


def view_sample(sample: dict) -> ViewSample:
    """A sample of :func:`shards.read_samples`, looked at. Its json may hold anything."""
    roles = rename_members(sample)
    meta = read_meta(roles)
    categories = _texts(meta.get("neg_categories"))
    facets = {name: meta[name] for name in ("category", "llm", "t2i") if isinstance(meta.get(name), str)}
    if isinstance(failed := _inside(meta, "verify").get("failed"), list):
        facets["verify"] = ", ".join(f"fails {name}" for name in failed) or "passes"
    if categories:
        facets.setdefault("category", categories[0])
    elif "category" in facets:
        categories = [facets["category"]]
    return ViewSample(
        key=roles["__key__"],
        shard=PurePosixPath(roles["__url__"]).name,
        captions=_captions(roles.get("text"), meta.get("captions")),
        neg_captions=_captions(roles.get("neg_text"), meta.get("neg_captions")),
        image=roles.get("image"),
        neg_image=roles.get("neg_image"),
        neg_categories=categories,
        facets=facets,
        scores=dict(_scores(meta)),
        notes=list(_notes(meta)),
        details=meta,
    )


def _captions(first: bytes | None, others: Any) -> list[str]:
    texts = [first.decode("utf-8", "replace").strip()] if first is not None else []
    return list(dict.fromkeys(text for text in (*texts, *_texts(others)) if text))


def _texts(values: Any) -> list[str]:
    return [v.strip() for v in values if isinstance(v, str)] if isinstance(values, list) else []


def _scores(meta: dict) -> Iterator[tuple[str, float]]:
    named = {name: value for name, value in meta.items() if name.endswith(SCORE_ENDINGS)}
    checks = {
        f"{check} {name}".removeprefix(f"{name} "): value
        for check, found in _inside(meta, "verify").items() if isinstance(found, dict)
        for name, value in found.items()
    }
    for name, value in {**named, **_inside(meta, "scores"), **checks}.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9:
            yield name, float(value)


def questions(meta: dict) -> list[dict[str, str]]:
    """What ``triplet-shards verify --checks questions`` asked: ``question``, ``expected``, ``answer`` of each."""
    items = _inside(meta, "verify", "questions").get("items")
    names = ("question", "expected", "answer")
    return [
        {name: item[name] for name in names}
        for item in (items if isinstance(items, list) else [])
        if isinstance(item, dict) and all(isinstance(item.get(name), str) for name in names)
    ]


def _notes(meta: dict) -> Iterator[str]:
    for item in questions(meta):
        if item["answer"] != item["expected"]:
            yield f"{item['question']} {item['answer'] or 'no answer'} (expected {item['expected']})"


def _inside(meta: dict, *names: str) -> dict:
    inner: Any = meta
    for name in names:
        inner = inner.get(name) if isinstance(inner, dict) else None
    return inner if isinstance(inner, dict) else {}


def add_shard_arguments(parser) -> None:
    """``SHARDS``, ``--sample`` and ``--seed``."""
    parser.add_argument("shards", nargs="+", metavar="SHARDS", help="folders of shards, or OpenCLIP's brace syntax")
    parser.add_argument("--sample", type=int, metavar="N", help="N samples at random of all the shards hold")
    parser.add_argument("--seed", type=int, default=0, help="of the random sample (default 0)")


def set_name(specs: Sequence[str]) -> str:
    """What a set is called in headings: the last part of its path, which tells nothing of the machine.

    >>> set_name(["/data/cc3m/{00000..00331}.tar", "triplets/"])
    'cc3m/{00000..00331}, triplets'
    """
    names = []
    for spec in specs:
        parts = spec.rstrip("/").removesuffix(".tar").split("/")
        whole = not spec.endswith(".tar") and parts[-1] not in ("train", "val", "test")
        names.append("/".join(parts[-1 if whole else -2 :]))
    return ", ".join(names)


def check_sample(args) -> None:
    """Raises UsageError for a sample of none."""
    if args.sample is not None and args.sample < 1:
        raise UsageError(f"--sample {args.sample}: must be at least 1")
