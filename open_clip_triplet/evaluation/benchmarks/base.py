"""What every benchmark module offers, and helpers to read their files."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

import numpy as np

from open_clip_triplet.errors import DataError, MissingData, ShardError
from open_clip_triplet.evaluation.images import ImageRef, read_tar_index
from open_clip_triplet.evaluation.tasks import Task


@dataclass(frozen=True)
class Headline:
    """A number that the authors report: a metric of the summary, of a subset, or of a group of its items."""

    label: str
    metric: str
    subset: str = ""
    group: str = ""


@dataclass(frozen=True)
class Benchmark:
    """A loader and how its subsets average.

    ``groups`` is the tree that the averages go over: a list of subset names or of further
    lists; None where the benchmark has a single subset or no agreed average. ``averages`` are (name,
    metric) of the averages over it, ``flat_averages`` those over its leaves alone, ``pooled`` those over
    all items. ``headlines`` are what the authors report. ``size`` is what to download, in their words.
    ``loader(data_root)`` gives a ``Task`` for each subset that is there.
    """

    name: str
    title: str
    licence: str
    source: str
    layout: tuple[str, ...]
    loader: Callable[[Path], Mapping[str, Task]]
    expected: Mapping[str, int]
    groups: tuple | None = None
    averages: tuple[tuple[str, str], ...] = (("overall", "accuracy"),)
    reference: str = ""
    flat_averages: tuple[tuple[str, str], ...] = ()
    pooled: tuple[tuple[str, str], ...] = ()
    headlines: tuple[Headline, ...] = ()
    size: str = ""

    def load(self, root: str | Path) -> dict[str, Task]:
        """A task per subset. Raises MissingData where nothing is found; loaders raise DataError."""
        root = Path(root)
        tasks = dict(self.loader(root))
        if not tasks:
            places = "\n  ".join(str(root / place) for place in self.layout)
            raise MissingData(f"{self.name}: no data under {root}. Expected:\n  {places}\nFrom: {self.source}")
        return tasks


def tree_leaves(tree: Iterable) -> list[str]:
    """Subset names of a ``groups`` tree, in order.

    >>> tree_leaves(["a", ["b", "c"]])
    ['a', 'b', 'c']
    """
    return [leaf for node in tree for leaf in ([node] if isinstance(node, str) else tree_leaves(node))]


def tree_mean(tree: Iterable, values: Mapping[str, np.ndarray]) -> np.ndarray:
    """Mean over the tree's top nodes of the mean within each.

    >>> float(tree_mean(["a", ["b", "c"]], {"a": 1.0, "b": 0.0, "c": 0.5}))
    0.625
    """
    nodes = [values[node] if isinstance(node, str) else tree_mean(node, values) for node in tree]
    return np.mean(nodes, axis=0)


def first_folder(root: Path, candidates: Iterable[str]) -> Path | None:
    """The first of these folders under ``root`` that exists."""
    return next((root / name for name in candidates if (root / name).is_dir()), None)


def first_file(root: Path, candidates: Iterable[str]) -> Path | None:
    """The first of these files under ``root`` that exists."""
    return next((root / name for name in candidates if (root / name).is_file()), None)


def subset_files(root: Path, folders: Sequence[str], files: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    """(subset, its file) of those subsets whose file is in one of these folders under ``root``."""
    for subset, file in files.items():
        if path := first_file(root, [f"{folder}/{file}".lstrip("/") for folder in folders]):
            yield subset, path


def read_json(path: Path) -> Any:
    """A JSON file. Raises DataError naming it where it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); fetch it again") from error


def read_text(path: Path) -> str:
    """A text file. Raises DataError naming it where it cannot be read or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({error}); fetch it again") from error


def read_list(path: Path) -> list:
    """A JSON file that is a list of items. Raises DataError naming it where it is not."""
    content = read_json(path)
    if not isinstance(content, list):
        raise DataError(f"{path}: expected a list of items, found {type(content).__name__}")
    return content


def csv_rows(path: Path) -> Iterator[tuple[int, dict]]:
    """(line number, row) of a CSV file with a heading.

    Raises:
        DataError: the file, or the line, that cannot be read; such as a field of over 131,072 characters.
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num + 1}: {error}; fetch it again") from error


def is_caption(value: Any) -> TypeGuard[str]:
    """Whether a value from an annotation file is a caption: text that UTF-8 can hold and is not empty."""
    if not isinstance(value, str) or not value.strip():
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, from an escape in JSON
        return False
    return True


def parquet_rows(path: Path, columns: Iterable[str]) -> Iterator[tuple[int, dict]]:
    """(row number, values) of these columns; images are better left out, see ``parquet_image``.

    Raises:
        DataError: pyarrow is not installed, or the file is damaged or lacks a column; it is named.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(
            f"{path}: reading Parquet needs pyarrow; install open_clip_triplet with its extra `eval`"
        ) from error
    try:
        with parquet.ParquetFile(path) as file:
            lacking = set(columns) - set(file.schema_arrow.names)
            if lacking:
                raise DataError(f"{path}: lacks the columns {', '.join(sorted(lacking))}")
            number = 0
            for batch in file.iter_batches(1024, columns=list(columns)):
                for row in batch.to_pylist():
                    yield number, row
                    number += 1
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error}); fetch it again") from error


def parquet_image(path: Path, column: str, row: int) -> ImageRef:
    """An image in a cell of a Parquet file, read in place when it is needed."""
    return ImageRef(str(path), member=column, row=row)


def entries(path: Path, fields: Iterable[str], task: Task) -> Iterable[tuple[str, dict]]:
    """(key, entry) of a JSON object or list of objects that have text in all these fields.

    Keys need not be contiguous. Stray values and entries without the fields are left out of ``task``
    by reason.
    """
    content = read_json(path)
    if not isinstance(content, (dict, list)):
        raise DataError(f"{path}: expected an object or a list of entries, found {type(content).__name__}")
    pairs = content.items() if isinstance(content, dict) else ((str(i), x) for i, x in enumerate(content))
    for key, entry in pairs:
        if not isinstance(entry, dict):
            task.leave_out("stray value in the annotations", f"{path.name} {key}")
        elif lacking := [name for name in fields if not is_caption(entry.get(name))]:
            task.leave_out("annotation incomplete", f"{path.name} {key} lacks {', '.join(lacking)}")
        else:
            yield str(key), entry


def shard_samples(shards: Iterable[Path], task: Task) -> Iterator[tuple[Path, dict]]:
    """(shard, sample) of uncompressed tars; one that is damaged is left out of ``task`` by name."""
    for shard in shards:
        try:
            samples = read_tar_index(shard)
        except ShardError as error:
            task.leave_out("shard damaged", str(error))
            continue
        yield from ((shard, sample) for sample in samples)


def image_below(folder: Path, name: str) -> Path:
    """The path of an image below a folder; annotations are not trusted with paths that lead out of it."""
    return folder.joinpath(*(part for part in PurePosixPath(name).parts if part not in ("/", "..")))


def find_image(folders: Iterable[Path | None], name: str) -> ImageRef:
    """Reference to an image by file name in the first folder that has it (or in the first folder).

    A name with a path in it is reduced to its last part: annotations are not trusted with paths.
    """
    base = os.path.basename(name.replace("\\", "/"))
    present = [folder for folder in folders if folder is not None]
    for folder in present:
        if os.path.isfile(folder / base):  # unlike Path.is_file, false for a name that is too long
            return ImageRef(str(folder / base))
    return ImageRef(str(present[0] / base) if present else base)


def image_or_zipped(folder: Path, name: str) -> ImageRef:
    """An image in ``folder/images``, or its member of ``images.zip`` where that was not unpacked."""
    archive = folder / "images.zip"
    if not (folder / "images").is_dir() and archive.is_file():
        return ImageRef(str(archive), f"images/{name}")
    return find_image([folder / "images"], name)


#: folders that COCO's images are looked for in, by release
COCO_2017 = ("coco/val2017", "val2017", "sugar-crepe/val2017", "coco/images/val2017")
COCO_2014 = ("mscoco_captions/val2014", "coco/val2014", "val2014", "coco/images/val2014")
