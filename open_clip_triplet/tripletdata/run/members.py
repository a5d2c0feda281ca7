"""What inputs hold, sample by sample, under role names: members of a shard, files of a folder, rows of a table."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import groupby

from open_clip_triplet import files
from open_clip_triplet.errors import ShardError
from open_clip_triplet.shards import IMAGE_SUFFIXES, read_samples, rename_members
from open_clip_triplet.tripletdata.run.tables import Table, iter_rows

NO_TEXT = "caption is no text"
IMAGE_MEMBERS = {*IMAGE_SUFFIXES, *(f"neg.{s}" for s in IMAGE_SUFFIXES), "image", "neg_image"}


def member_rows(url: str, images: bool) -> Iterator[dict]:
    """Samples of a shard, or of a folder of files.

    Args:
        images: False leaves images unread.

    Raises:
        ShardError: it is missing or damaged.
    """
    try:
        if not files.is_remote(url) and os.path.isdir(url):
            yield from map(_roles, _folder_samples(url, images))
            return

        def take(members, number: int, suffix: str) -> bytes | None:
            return members.read() if images or suffix not in IMAGE_MEMBERS else None

        yield from map(_roles, read_samples(url, take))
    except FileNotFoundError as error:
        raise ShardError(f"{url}: no such file") from error
    except OSError as error:
        raise ShardError(f"{url}: cannot be read ({error.strerror or error})") from error


def table_rows(path: str, table: Table, rows: tuple[int, int], images: bool) -> Iterator[dict]:
    """Samples of the ``rows`` (from, up to) of a table, with the images that it names or holds; ``reason``
    where a sample lacks what the table is read for.

    Raises:
        ShardError: the table is missing.
    """
    if not files.exists(path):
        raise ShardError(f"{path}: no such file")
    for number, (caption, *image) in enumerate(iter_rows(path, table, *rows), rows[0]):
        data, name = table_cell(image[0]) if image else (None, "")
        roles: dict = {"__key__": os.path.splitext(os.path.basename(name))[0] or str(number)}
        captions = table_captions(caption)
        if captions is None:
            roles["reason"] = NO_TEXT
        else:
            roles["text"] = (captions[0] if captions else "").encode("utf-8", "replace")
            roles["meta"] = json.dumps({"captions": captions})
        # A member of another suffix would not be read back; decoders look at the bytes, not the name.
        suffix = os.path.splitext(name)[1].lower().lstrip(".")
        roles["suffix"] = suffix if suffix in IMAGE_SUFFIXES else "jpg"
        if data is None and (not table.text_only or (images and name)):
            file = files.join(table.root or os.path.dirname(path), name)
            try:
                data = files.read_bytes(file) if images else None
                found = images or files.exists(file)
            except (OSError, ValueError):
                found = False
            if not found and not table.text_only:
                roles.setdefault("reason", "image file missing")
        if data is not None:
            roles["image"] = data
        yield roles


def table_cell(image) -> tuple[bytes | None, str]:
    """Bytes and name of a table's image: a path, bytes, or Hugging Face's ``{"bytes", "path"}``."""
    if isinstance(image, dict):
        return image.get("bytes"), str(image.get("path") or "")
    return (image, "") if isinstance(image, bytes) else (None, str(image or ""))


def table_captions(cell) -> list[str] | None:
    """Captions of a table's cell, a text or a list of texts, without empty ones; None where it is neither.

    >>> table_captions("a dog"), table_captions(["a dog", "a  brown\\ndog"]), table_captions(None), table_captions(7)
    (['a dog'], ['a dog', 'a brown dog'], [], None)
    """
    texts = cell if isinstance(cell, list) else [] if cell is None else [cell]
    if not all(isinstance(text, str) for text in texts):
        return None
    return [*filter(None, map(one_line, texts))]


def one_line(text: str) -> str:
    """A caption without line breaks and repeated spaces, which CLIP's tokenizers do not see either."""
    return " ".join(text.replace("\0", "").split())


def _folder_samples(folder: str, images: bool) -> Iterator[dict]:
    """Samples of a folder of files, ``000000017.jpg 000000017.txt 000000017.json``, as img2dataset writes."""
    names = sorted(name for name in os.listdir(folder) if "." in name[1:] and not name.startswith("."))
    for key, members in groupby(names, lambda name: name.partition(".")[0]):
        sample: dict = {"__key__": key, "__url__": folder}
        for name in members:
            suffix = name.partition(".")[2].lower()
            if images or suffix not in IMAGE_MEMBERS:
                sample[suffix] = files.read_bytes(os.path.join(folder, name))
        yield sample


def _roles(raw: dict) -> dict:
    suffix = next((s for s in raw if s in IMAGE_SUFFIXES), "jpg")
    neg = next((s for s in IMAGE_SUFFIXES if f"neg.{s}" in raw), "jpg")
    return {**rename_members(raw), "suffix": suffix, "neg_suffix": neg}
