"""The paired-shard format: member names, read, write, inspect.

A shard is one tar. Each sample is a run of members that share a key, the file name up to its
first dot::

    000000017.jpg  000000017.txt  000000017.neg.jpg  000000017.neg.txt  000000017.json

Stock OpenCLIP reads the same shard as plain pairs, because it ignores ``neg.*``. Shards of the
released TripletData (``.image .caption .neg_image .neg_caption``) are read under the same fields.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import io
import json
import logging
import os
import re
import tarfile
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any

import braceexpand

from open_clip_triplet.errors import UsageError
from open_clip_triplet.files import is_remote, join, read_bytes, write_text_durably, write_whole
from open_clip_triplet.tar import TarMembers, open_tar

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")

#: member suffix (lower case) -> field of the sample; where a sample has two for one field, the first here
FIELDS = {
    **{suffix: "image" for suffix in IMAGE_SUFFIXES},
    "txt": "text",
    **{f"neg.{suffix}": "neg_image" for suffix in IMAGE_SUFFIXES},
    "neg.txt": "neg_text",
    "json": "meta",
    # the released TripletData
    "image": "image",
    "caption": "text",
    "neg_image": "neg_image",
    "neg_caption": "neg_text",
}


def expand_shards(spec: str | Iterable[str]) -> list[str]:
    """Shard urls of OpenCLIP's brace syntax.

    ``::`` joins sources, ``{000..999}`` expands, and ``<000..999>`` is read as ``{000..999}``, so
    that a job script need not quote braces. A local folder stands for its ``*.tar``, and a local pattern with
    ``*`` for what it matches, by name.

    >>> expand_shards("a/{0..1}.tar::b/<08..09>.tar")
    ['a/0.tar', 'a/1.tar', 'b/08.tar', 'b/09.tar']

    Raises:
        UsageError: a brace is not closed.
    """
    if not isinstance(spec, str):
        return [url for item in spec for url in expand_shards(item)]
    try:
        return [url for source in normalise_ranges(spec).split("::") for url in braceexpand.braceexpand(source)]
    except ValueError as error:
        raise UsageError(f"{spec}: {error}") from error


def normalise_ranges(spec: str) -> str:
    """A spec as OpenCLIP takes it: ``<000..999>`` as ``{000..999}``, folders and patterns as what they hold."""
    spec = re.sub(r"<(\w+\.\.\w+(?:\.\.\d+)?)>", r"{\1}", spec)
    return "::".join(_spell_out(source) for source in spec.split("::"))


def _spell_out(source: str) -> str:
    if is_remote(source) or os.path.isfile(source):
        return source
    pattern = os.path.join(glob.escape(source), "*.tar") if os.path.isdir(source) else source
    found = sorted(glob.glob(pattern)) if "*" in pattern or "?" in pattern else []
    return _in_braces(found) if found else source


def _in_braces(paths: list[str]) -> str:
    """Paths as one brace spelling: a range where they differ in a running number of one width, else a list."""
    stem = os.path.commonprefix(paths).rstrip("0123456789")
    match = re.fullmatch(r"(\d+)(\D.*)", paths[0][len(stem) :])
    if match and len(paths) > 1:
        digits, tail = match.groups()
        last = f"{int(digits) + len(paths) - 1:0{len(digits)}d}"
        if paths == [f"{stem}{int(digits) + n:0{len(digits)}d}{tail}" for n in range(len(paths))]:
            return f"{stem}{{{digits}..{last}}}{tail}"
    if len(paths) == 1 or any(character in path for path in paths for character in ",{}"):
        return "::".join(paths)  # sources of their own
    tail = ".tar" if all(path.endswith(".tar") for path in paths) else ""  # OpenCLIP tells shards by how the spec ends
    return f"{{{','.join(path.removesuffix(tail) for path in paths)}}}{tail}"


def split_name(name: str) -> tuple[str | None, str]:
    """Key and lower-case suffix of a tar member, at the first dot of the file name.

    >>> split_name("part/0001.neg.jpg")
    ('part/0001', 'neg.jpg')
    """
    folder, _, base = name.rpartition("/")
    stem, dot, suffix = base.partition(".")
    if not stem or not dot or not suffix or base.startswith("__"):
        return None, ""
    return (f"{folder}/{stem}" if folder else stem), suffix.lower()


def read_samples(
    shard: str | os.PathLike[str],
    take: Callable[[TarMembers, int, str], Any] = lambda members, number, suffix: members.read(),
    *,
    in_place: bool = False,
) -> Generator[dict[str, Any], None, None]:
    """Samples of a shard, plain or gzipped, as ``{"__key__", "__url__", suffix: bytes, ...}``.

    A sample is yielded once the member after it, or the end of the archive, has been seen: half of one never is.

    Args:
        take: (members, number of the sample, suffix) to the value of the current member, or None to leave it out.
        in_place: as in :func:`tar.open_tar`.

    Raises:
        OSError: it cannot be opened.
        ShardError: it is damaged, or ends early; whole samples before the damage have been yielded.
    """
    number = -1
    sample: dict[str, Any] | None = None
    suffixes: set[str] = set()
    with open_tar(shard, in_place=in_place) as members:
        for name in members:
            key, suffix = split_name(name)
            if key is None:
                continue
            if sample is None or key != sample["__key__"] or suffix in suffixes:
                if sample is not None:
                    yield sample
                number, sample, suffixes = number + 1, {"__key__": key, "__url__": str(shard)}, set()
            suffixes.add(suffix)
            value = take(members, number, suffix)
            if value is not None:
                sample[suffix] = value
        if sample is not None:
            yield sample


def rename_members(sample: dict[str, Any], names: Mapping[str, str] = FIELDS) -> dict[str, Any]:
    """A sample's bytes under field names (``image text neg_image neg_text meta``); absent ones left out."""
    fields = {"__key__": sample["__key__"], "__url__": sample.get("__url__", "")}
    for suffix, name in names.items():
        if suffix in sample:
            fields.setdefault(name, sample[suffix])
    return fields


def read_meta(sample: dict[str, Any]) -> dict[str, Any]:
    """The ``json`` member of a sample as a dict; ``{}`` where it is absent or not an object."""
    try:
        meta = json.loads(sample.get("meta", b"{}"))
    except (ValueError, RecursionError):
        return {}
    return meta if isinstance(meta, dict) else {}


class ShardWriter:
    """Writes one shard, to a local path or a url, whole or not at all: see :func:`files.write_whole`.

    The bytes depend on the samples alone (fixed owner, mode and time), so the same samples give
    the same file. ``len(writer)`` is the number of samples written.

    >>> with ShardWriter("00000.tar") as writer:                             # doctest: +SKIP
    ...     writer.write({"__key__": "0", "jpg": data, "txt": "a dog", "json": {"seed": 1}})
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = path
        self._samples = 0

    def __enter__(self) -> ShardWriter:
        self._files = contextlib.ExitStack()
        file = self._files.enter_context(write_whole(self.path))
        self._tar = self._files.enter_context(tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT))
        return self

    def __len__(self) -> int:
        return self._samples

    def write(self, sample: dict[str, Any]) -> None:
        """Append one sample. Values: bytes as they are, str as UTF-8, anything else as JSON.

        Lone surrogates (broken escapes in foreign JSON) have no UTF-8 and become ``?``.

        Members are written in sorted suffix order. Keys starting with ``__`` are not members.

        Raises:
            ValueError: the key is empty or its file name has a dot (it would not come back).
        """
        key = sample["__key__"]
        if split_name(f"{key}.x") != (key, "x"):
            raise ValueError(
                f"sample key {key!r}: a key has no dot, is not empty and does not start with '__'"
            )
        for suffix in sorted(name for name in sample if not name.startswith("__")):
            data = _encode(sample[suffix])
            info = tarfile.TarInfo(f"{key}.{suffix}")
            info.size, info.mode = len(data), 0o644
            self._tar.addfile(info, io.BytesIO(data))
        self._samples += 1

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._files.__exit__(kind, error, trace)


def _encode(value: Any) -> bytes:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, str):
        return value.encode("utf-8", "replace")
    return json.dumps(value, ensure_ascii=False, sort_keys=True).encode("utf-8", "replace")


def read_sizes(urls: Sequence[str], unknown: list[str] | None = None) -> list[int] | None:
    """Samples per shard from the ``sizes.json`` beside each shard; None where any is unknown.

    unknown: filled with the shards that have no entry.

    Raises:
        OSError: a store cannot be reached, so whether there is one is not known.
    """
    sizes_in = functools.cache(_sizes_in)
    found: dict[str, Any] = {url: sizes_in(os.path.dirname(url)).get(os.path.basename(url)) for url in urls}
    missing = [url for url, size in found.items() if not isinstance(size, int) or size < 0]
    if unknown is not None:
        unknown += missing
    return None if missing else [found[url] for url in urls]


def _sizes_in(folder: str) -> dict[str, Any]:
    """The ``sizes.json`` of a folder or of the start of a url; ``{}`` where there is none to read."""
    path = join(folder, "sizes.json")
    if path.startswith("pipe:"):
        return {}
    try:
        sizes = json.loads(read_bytes(path))
    except (OSError, ValueError, RecursionError) as error:
        if is_remote(path):
            if isinstance(error, OSError) and not isinstance(error, (FileNotFoundError, PermissionError)):
                raise
            logging.info("No sizes.json beside the shards: %s", error)
        return {}
    return sizes if isinstance(sizes, dict) else {}


def write_sizes(folder: str | os.PathLike[str], sizes: dict[str, int]) -> None:
    """Write OpenCLIP's ``sizes.json`` (shard file name -> samples) beside the shards."""
    write_text_durably(join(folder, "sizes.json"), json.dumps(sizes, indent=1, sort_keys=True) + "\n")
