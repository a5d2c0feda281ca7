"""What an evaluation set holds: its images' fingerprints and its captions, to look for in training data."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from open_clip_triplet.errors import UsageError
from open_clip_triplet.inspect.duplicates import NEAR, fingerprint, near_pairs, normal_caption
from open_clip_triplet.shards import read_samples, rename_members

IMAGES = (".jpg", ".jpeg", ".png", ".webp")
#: words that a string of an annotation file must have to be a caption
LEAST_WORDS = 3


@dataclass
class EvaluationSet:
    """One set, by name. ``captions`` are normalised."""

    name: str
    digests: set[bytes] = field(default_factory=set)
    phashes: set[int] = field(default_factory=set)
    captions: set[str] = field(default_factory=set)
    images: int = 0

    def near(self, phashes: np.ndarray, bits: int = NEAR) -> set[int]:
        """Places in ``phashes`` [n] that are near one of this set's images."""
        own = np.fromiter(self.phashes, np.uint64, len(self.phashes))
        return set(near_pairs(phashes, own, bits)[:, 0].tolist()) if len(own) else set()


def read_evaluation_set(text: str) -> EvaluationSet:
    """``[NAME=]PATH``: a folder or file of images, shards (tar) and annotations (json, jsonl, csv, tsv, txt).

    Raises:
        UsageError: nothing there, or nothing in it that is an image or a caption.
    """
    name, equals, path = text.partition("=")
    if not equals or os.sep in name:
        name, path = "", text
    root = Path(path)
    if not root.exists():
        raise UsageError(f"--against {path}: no such file or folder")
    found = EvaluationSet(name or root.stem)
    files = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for print_ in pool.map(fingerprint, _images(files)):
            found.images += 1
            found.digests.add(print_.digest)
            if print_.phash is not None:
                found.phashes.add(print_.phash)
    found.captions.update(filter(None, map(normal_caption, _captions(files))))
    if not (found.images or found.captions):
        raise UsageError(f"--against {path}: holds neither images nor captions")
    return found


def _images(files: Iterable[Path]) -> Iterator[bytes]:
    for path in files:
        if path.suffix.lower() in IMAGES:
            yield path.read_bytes()
        elif path.suffix == ".tar":
            for roles in map(rename_members, read_samples(path)):
                yield from (roles[role] for role in ("image", "neg_image") if role in roles)


def _captions(files: Iterable[Path]) -> Iterator[str]:
    for path in files:
        try:
            if path.suffix == ".json":
                yield from _strings(json.loads(path.read_text(encoding="utf-8")))
            elif path.suffix == ".jsonl":
                for line in path.read_text(encoding="utf-8").splitlines():
                    yield from _strings(json.loads(line))
            elif path.suffix in (".csv", ".tsv", ".txt"):
                with open(path, encoding="utf-8", newline="") as file:
                    rows = csv.reader(file, delimiter="," if path.suffix == ".csv" else "\t")
                    yield from _strings(list(rows))
            elif path.suffix == ".tar":
                for roles in map(rename_members, read_samples(path)):
                    yield from (roles[r].decode("utf-8", "replace") for r in ("text", "neg_text") if r in roles)
                    yield from _strings(json.loads(roles.get("meta", b"null")))
        except (ValueError, RecursionError, csv.Error) as error:
            raise UsageError(f"{path}: cannot be read as annotations ({error})") from error


def _strings(value: Any) -> Iterator[str]:
    """Every string with enough words, at any depth. Urls and file names have too few."""
    if isinstance(value, str):
        if len(value.split()) >= LEAST_WORDS:
            yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
