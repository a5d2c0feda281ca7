"""Data sets of ready-made hard pairs, as ``import`` reads them: their columns, sources and licences.

The columns are those of the data sets' cards (pair_formats.json). GPT-Image-Edit-1.5M has no table: its
annotations are json lists of conversations about two images, with an instruction and no caption.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources

from open_clip_triplet import files
from open_clip_triplet.errors import PipelineError
from open_clip_triplet.tripletdata.run.stage import needs
from open_clip_triplet.tripletdata.run.tables import Table, count_rows, iter_rows

NEEDED = ("image", "caption", "neg_image", "neg_caption")
OPTIONAL = ("instruction", "category")


@dataclass(frozen=True)
class Format:
    """A data set: its columns by what they are, where it comes from, and its licence as its card says it.

    Args:
        original: column in which an edited row names the row of its original; both have the key ``row_key``.
        conversations: its annotations are no table; :func:`as_table` makes one.
    """

    source: str
    licence: str
    columns: dict[str, str] = field(default_factory=dict)
    original: str = ""
    row_key: str = ""
    conversations: bool = False


@functools.cache
def formats() -> dict[str, Format]:
    text = resources.files(__package__).joinpath("pair_formats.json").read_text(encoding="utf-8")
    return {name: Format(**about) for name, about in json.loads(text).items()}


def as_table(annotations: str, captions: str, output: str) -> str:
    """Write annotations of GPT-Image-Edit-1.5M, with the captions of their images, as a parquet table.

    Args:
        annotations: json file, a list of ``{"image": [input, output], "conversations": [{"from": "human",
            "value": instruction}, ...]}``.
        captions: table with a caption of each image, named as in the annotations (columns ``image``,
            ``caption``). An image without one leaves its cell empty, so that the row is dropped and counted.
        output: folder of the table.

    Returns:
        The table's path.

    Raises:
        PipelineError: a file cannot be read or is something else.
    """
    with needs("this format needs pyarrow"):
        import pyarrow
        import pyarrow.parquet

    columns = Table("image", "caption")
    known = {image: caption for caption, image in iter_rows(captions, columns, 0, count_rows(captions, columns))}
    names = (*NEEDED, "instruction")
    rows = list(_conversations(annotations, known))
    table = pyarrow.table({name: [row[n] for row in rows] for n, name in enumerate(names)})
    path = files.join(output, os.path.basename(annotations).removesuffix(".json") + ".parquet")
    with files.write_whole(path) as stream:
        pyarrow.parquet.write_table(table, stream)
    missing = sum(not (row[1] and row[3]) for row in rows)
    print(f"{annotations}: {len(rows):,} edits, {missing:,} of them without both captions", file=sys.stderr)
    return path


def _conversations(path: str, captions: dict[str, str]) -> Iterator[tuple[str, ...]]:
    """(image, caption, negative image, its caption, instruction) of each record.

    Raises:
        PipelineError: the file is not a list of such records; the number of the first other one is named.
    """
    try:
        records = json.loads(files.read_bytes(path))
    except (OSError, ValueError) as error:
        raise PipelineError(f"{path}: cannot be read ({error})", 2) from error
    for number, record in enumerate(records if isinstance(records, list) else [records]):
        try:
            row = _edit(record, captions)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise PipelineError(f"{path}: record {number} is no edit of an image ({error!r})", 2) from error
        yield row


def _edit(record: dict, captions: dict[str, str]) -> tuple[str, ...]:
    image, edited = map(str, record["image"])
    asked = [turn["value"] for turn in record["conversations"] if turn["from"] == "human"]
    instruction = " ".join(asked[-1].replace("<image>", " ").split())
    return image, captions.get(image, ""), edited, captions.get(edited, ""), instruction
