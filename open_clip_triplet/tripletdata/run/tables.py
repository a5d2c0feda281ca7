"""Tables of image paths and captions: csv, tsv, parquet."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from open_clip_triplet.errors import PipelineError

TABLES = (".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class Table:
    """How to read rows: which columns, and the folder that relative image paths start from."""

    image_key: str = "filepath"
    caption_key: str = "title"
    root: str = ""


@functools.lru_cache(maxsize=2)
def read_table(path: str, table: Table) -> list[tuple]:
    """(image path, caption) rows of a csv, tsv or parquet file.

    Raises:
        PipelineError: the file or one of its columns is missing; the columns found are named.
    """
    import pandas

    columns = [table.image_key, table.caption_key]
    try:
        if path.endswith(".parquet"):
            frame = pandas.read_parquet(path)
        else:
            separator = "\t" if path.endswith(".tsv") else ","
            frame = pandas.read_csv(path, sep=separator, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise PipelineError(f"{path}: cannot be read ({error})", 2) from error
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise PipelineError(
            f"{path} has no column {' or '.join(map(repr, missing))} "
            f"(it has: {', '.join(map(str, frame.columns))}). "
            "Name the columns with --image-key and --caption-key.",
            2,
        )
    return list(frame[columns].fillna("").itertuples(index=False, name=None))
