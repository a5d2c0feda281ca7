"""Tables of captions with image paths or image bytes: csv, tsv, parquet, arrow (Hugging Face datasets)."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from open_clip_triplet import files
from open_clip_triplet.errors import PipelineError

TABLES = (".csv", ".tsv", ".parquet", ".arrow")
#: columns to look for where the default one is not there
IMAGE_COLUMNS = ("filepath", "image", "jpg", "image_path", "file_name")
CAPTION_COLUMNS = ("title", "caption", "text", "captions", "TEXT")
URL_COLUMNS = ("url", "URL", "image_url")


@dataclass(frozen=True)
class Table:
    """How to read rows: which columns, the folder that relative image paths start from, and ``text_only`` where
    captions are all that is needed.
    """

    image_key: str = "filepath"
    caption_key: str = "title"
    root: str = ""
    text_only: bool = False
    #: what to do about a column that is missing
    advice: ClassVar[str] = "Name the columns with --image-key and --caption-key."

    def columns(self, path: str, found: list[str]) -> list[str]:
        """The caption column and the image column among those ``found``; no image column where none is needed.

        Raises:
            PipelineError: one is missing; the columns found are named. A table of urls is told what
                downloads it.
        """
        image = _find(self.image_key, Table.image_key, IMAGE_COLUMNS, found)
        caption = _find(self.caption_key, Table.caption_key, CAPTION_COLUMNS, found)
        url = next((name for name in URL_COLUMNS if name in found), None)
        missing = [] if caption else [self.caption_key]
        if not image and not self.text_only:
            if url:
                raise PipelineError(_download_first(path, url, caption or self.caption_key), 2)
            missing.insert(0, self.image_key)
        if missing:
            raise PipelineError(
                f"{path} has no column {' or '.join(map(repr, missing))} (it has: {', '.join(found)}). "
                f"{self.advice}",
                2,
            )
        return [name for name in (caption, image) if name]


def _find(name: str, default: str, others: tuple[str, ...], found: list[str]) -> str | None:
    """The column of that name among ``found``; the first of ``others`` where the name is the default."""
    return next((n for n in (others if name == default else (name,)) if n in found), None)


def _download_first(path: str, url: str, caption: str) -> str:
    kind = path.rsplit(".", 1)[-1]
    return (
        f"{path} holds urls of images (column {url!r}), not images. Download them first:\n"
        f"  img2dataset --url_list {path} --input_format {kind} --url_col {url} --caption_col {caption} \\\n"
        "    --output_format webdataset --output_folder DOWNLOADED --resize_mode keep_ratio --image_size 256\n"
        "then use --input DOWNLOADED"
    )


def count_rows(path: str, table: Table) -> int:
    """Rows of a table, its columns checked.

    Raises:
        PipelineError: the file cannot be read or lacks a column.
    """
    with _opened_table(path) as (names, file):
        table.columns(path, names)
        if hasattr(file, "metadata"):  # parquet
            return file.metadata.num_rows
        return len(file) if hasattr(file, "iloc") else sum(batch.num_rows for batch in file)


def iter_rows(path: str, table: Table, start: int, stop: int) -> Iterator[tuple]:
    """(caption, image) of the rows from ``start`` up to ``stop``: image is a path, bytes, or a dict of both.
    Of a table without an image column that is read for its captions, (caption,).

    Raises:
        PipelineError: as :func:`count_rows`.
    """
    with _opened_table(path) as (names, _):
        columns = table.columns(path, names)
    yield from iter_columns(path, columns, start, stop)


def iter_columns(path: str, columns: list[str], start: int, stop: int) -> Iterator[tuple]:
    """Values of ``columns`` in the rows from ``start`` up to ``stop``; parquet skips the row groups before.

    Raises:
        PipelineError: the file cannot be read or lacks a column; those found are named.
    """
    with _opened_table(path) as (found, file):
        if missing := [name for name in columns if name not in found]:
            raise PipelineError(
                f"{path} has no column {' or '.join(map(repr, missing))} (it has: {', '.join(found)}).", 2
            )
        if hasattr(file, "iloc"):
            yield from file[columns].iloc[start:stop].itertuples(index=False, name=None)
            return
        for first, batch in _batches(file, list(dict.fromkeys(columns)), start):
            skip, end = max(start - first, 0), min(stop - first, batch.num_rows)
            if skip < end:
                part = batch.slice(skip, end - skip)
                yield from zip(*(part.column(name).to_pylist() for name in columns))
            if first + batch.num_rows >= stop:
                return


def _batches(file, columns: list[str], start: int) -> Iterator[tuple]:
    """(number of the first row, record batch of ``columns``) from the one that holds row ``start`` on."""
    first = 0
    if not hasattr(file, "metadata"):  # an arrow stream is read from its start
        for batch in file:
            yield first, batch.select(columns)
            first += batch.num_rows
        return
    groups = list(range(file.num_row_groups))
    while len(groups) > 1 and first + file.metadata.row_group(groups[0]).num_rows <= start:
        first += file.metadata.row_group(groups.pop(0)).num_rows
    for batch in file.iter_batches(256, row_groups=groups, columns=columns):
        yield first, batch
        first += batch.num_rows


@contextlib.contextmanager
def _opened_table(path: str):
    """(column names, pandas' frame or pyarrow's open file) of a table; whatever is wrong with it, as PipelineError."""
    kind = path.lower().rpartition(".")[2]
    try:
        if kind not in ("parquet", "arrow"):
            frame = _read_frame(path, files.size_of(path))
            yield list(map(str, frame.columns)), frame
            return
        import pyarrow.parquet

        with _opened(path) as stream:
            if kind == "parquet":
                with pyarrow.parquet.ParquetFile(stream) as file:
                    yield file.schema_arrow.names, file
            else:
                with pyarrow.ipc.open_stream(stream) as file:
                    yield file.schema.names, file
    except ImportError as error:
        raise PipelineError(f"{path}: {error}; install open_clip_triplet with its extra `build`", 4) from error
    except (OSError, ValueError) as error:  # pyarrow's and pandas' own errors are ValueErrors
        raise PipelineError(f"{path}: cannot be read ({error})", 2) from error


def _opened(path: str):
    if not files.is_remote(path):
        return open(files.local_path(path), "rb")
    fs, name = files.filesystem(path)
    return fs.open(name, "rb")


@functools.lru_cache(maxsize=2)
def _read_frame(path: str, size: int):
    """A csv or tsv of ``size`` bytes, every cell a string: one that has grown is read again."""
    import pandas

    separator = "\t" if path.lower().endswith(".tsv") else ","
    with _opened(path) as stream:
        header = stream.readline().decode("utf-8", "replace")
        other = next((mark for mark in (";", "\t", ",") if mark in header), separator)
        if separator not in header and other != separator:
            wanted = "tabs" if separator == "\t" else "commas, or a name that ends in .tsv and tabs"
            raise PipelineError(f"{path}: its columns are separated by {other!r}. Use {wanted}.", 2)
        stream.seek(0)
        frame = pandas.read_csv(stream, sep=separator, dtype=str, keep_default_na=False).fillna("")
    if len(frame) and not isinstance(frame.index, pandas.RangeIndex):  # the first cells were taken for its index
        raise PipelineError(
            f"{path}: its first row has more cells than its header. Put captions that hold a comma in quotes.", 2
        )
    return frame
