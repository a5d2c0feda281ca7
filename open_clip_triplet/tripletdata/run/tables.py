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
    with _explained(path):
        if path.endswith(".parquet"):
            with _parquet(path) as file:
                table.columns(path, file.schema_arrow.names)
                return file.metadata.num_rows
        if path.endswith(".arrow"):
            with _arrow(path) as stream:
                table.columns(path, stream.schema.names)
                return sum(batch.num_rows for batch in stream)
        return len(_read_text(path, table, files.size_of(path)))


def iter_rows(path: str, table: Table, start: int, stop: int) -> Iterator[tuple]:
    """(caption, image) of the rows from ``start`` up to ``stop``: image is a path, bytes, or a dict of both.
    Of a table without an image column that is read for its captions, (caption,).

    Raises:
        PipelineError: as :func:`count_rows`.
    """
    if not path.endswith((".parquet", ".arrow")):
        yield from _read_text(path, table, files.size_of(path))[start:stop]
        return
    with _explained(path), _open_columns(path) as (names, _):
        columns = table.columns(path, names)
    yield from iter_columns(path, columns, start, stop)


def iter_columns(path: str, columns: list[str], start: int, stop: int) -> Iterator[tuple]:
    """Values of ``columns`` in the rows from ``start`` up to ``stop``; parquet skips the row groups before.

    Raises:
        PipelineError: the file cannot be read or lacks a column; those found are named.
    """
    with _explained(path):
        if not path.endswith((".parquet", ".arrow")):
            frame = _read_frame(path, files.size_of(path))
            _require(path, columns, list(map(str, frame.columns)))
            yield from frame[columns].iloc[start:stop].itertuples(index=False, name=None)
            return
        with _open_columns(path) as (names, file):
            _require(path, columns, names)
            for first, batch in _batches(file, list(dict.fromkeys(columns)), start):
                skip, end = max(start - first, 0), min(stop - first, batch.num_rows)
                if skip < end:
                    part = batch.slice(skip, end - skip)
                    yield from zip(*(part.column(name).to_pylist() for name in columns))
                if first + batch.num_rows >= stop:
                    return


def _require(path: str, columns: list[str], found: list[str]) -> None:
    if missing := [name for name in columns if name not in found]:
        raise PipelineError(
            f"{path} has no column {' or '.join(map(repr, missing))} (it has: {', '.join(found)}).", 2
        )


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
def _open_columns(path: str):
    """(column names, open file) of a parquet or arrow table."""
    with (_parquet if path.endswith(".parquet") else _arrow)(path) as file:
        yield (file.schema_arrow if path.endswith(".parquet") else file.schema).names, file


@contextlib.contextmanager
def _parquet(path: str):
    import pyarrow.parquet

    with _opened(path) as stream, pyarrow.parquet.ParquetFile(stream) as file:
        yield file


@contextlib.contextmanager
def _arrow(path: str):
    import pyarrow

    with _opened(path) as stream, pyarrow.ipc.open_stream(stream) as reader:
        yield reader


def _opened(path: str):
    if not files.is_remote(path):
        return open(files.local_path(path), "rb")
    fs, name = files.filesystem(path)
    return fs.open(name, "rb")


@contextlib.contextmanager
def _explained(path: str):
    """Whatever is wrong with a table, as PipelineError."""
    try:
        yield
    except ImportError as error:
        raise PipelineError(f"{path}: {error}; install open_clip_triplet with its extra `build`", 4) from error
    except (OSError, ValueError) as error:  # pyarrow's and pandas' own errors are ValueErrors
        raise PipelineError(f"{path}: cannot be read ({error})", 2) from error


def _read_text(path: str, table: Table, size: int) -> list[tuple]:
    """(caption, image) rows of a csv or tsv, or (caption,)."""
    frame = _read_frame(path, size)
    columns = table.columns(path, list(map(str, frame.columns)))
    return list(frame[columns].itertuples(index=False, name=None))


def _refuse_other_separator(path: str, header: str, separator: str) -> None:
    other = next((mark for mark in (";", "\t", ",") if mark in header), separator)
    if separator not in header and other != separator:
        wanted = "tabs" if separator == "\t" else "commas, or a name that ends in .tsv and tabs"
        raise PipelineError(f"{path}: its columns are separated by {other!r}. Use {wanted}.", 2)


@functools.lru_cache(maxsize=2)
def _read_frame(path: str, size: int):
    """A csv or tsv of ``size`` bytes, every cell a string: one that has grown is read again."""
    with _explained(path):
        import pandas

        separator = "\t" if path.endswith(".tsv") else ","
        with _opened(path) as stream:
            _refuse_other_separator(path, stream.readline().decode("utf-8", "replace"), separator)
            stream.seek(0)
            return pandas.read_csv(stream, sep=separator, dtype=str, keep_default_na=False).fillna("")
