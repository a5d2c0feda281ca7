"""BiVLC: SugarCrepe's items with an image for the negative caption too; 2,933 items in Parquet.

``text`` is the authors' I2T, ``image`` their T2I.
Reference: Miranda et al., NeurIPS 2024; huggingface.co/datasets/imirandam/BiVLC.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from open_clip_triplet.errors import DataError
from open_clip_triplet.evaluation.benchmarks.base import Benchmark
from open_clip_triplet.evaluation.images import ImageRef
from open_clip_triplet.evaluation.tasks import Pair, PairTask
from open_clip_triplet.files import replace_durably

COLUMNS = ("image", "caption", "negative_caption", "negative_image", "type")


def load(root: Path) -> dict[str, PairTask]:
    files = sorted(Path(root).glob("bivlc/**/*.parquet"))
    if not files:
        raise BENCHMARK.missing(root)
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise DataError("BiVLC comes as Parquet: pip install pyarrow") from error
    task = PairTask([], expected=2933)
    for path in files:
        try:
            table = parquet.ParquetFile(path)
            rows = (
                row for batch in table.iter_batches(64, columns=list(COLUMNS)) for row in batch.to_pylist()
            )
            for number, row in enumerate(rows):
                _append(task, row, f"{path.name}/{number}", path.parent / "unpacked")
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{path}: not BiVLC's Parquet ({error})") from error
    return {"bivlc": task}


def _append(task: PairTask, row: dict, name: str, folder: Path) -> None:
    images = [row[column] for column in ("image", "negative_image")]
    texts = (row["caption"], row["negative_caption"])
    if not all(isinstance(i, dict) and i.get("bytes") for i in images) or not all(texts):
        task.leave_out("annotation incomplete", name)
        return
    task.items.append(Pair(name, tuple(_unpacked(i["bytes"], folder) for i in images), texts))


def _unpacked(data: bytes, folder: Path) -> ImageRef:
    """The image as a file beside the Parquet, named by its content, so that it can be read alone."""
    path = folder / hashlib.blake2b(data, digest_size=16).hexdigest()
    if not path.is_file():
        folder.mkdir(exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(data)
        replace_durably(temporary, path)
    return ImageRef(str(path))


BENCHMARK = Benchmark(
    name="bivlc",
    title="BiVLC",
    licence="MIT; COCO images under their own Creative Commons licences",
    source="https://huggingface.co/datasets/imirandam/BiVLC",
    layout=("bivlc/data/test-*.parquet",),
    load=load,
    expected={"bivlc": 2933},
    reference="Miranda et al., NeurIPS 2024",
)
