"""Where an image lies: a file, a member of a tar or zip, a cell of a Parquet file; and its pixels.

Nothing is ever unpacked: members and cells are read in place, so a data root may be read-only.
"""

from __future__ import annotations

import bisect
import io
import os
import threading
import zipfile
from dataclasses import dataclass
from functools import lru_cache

from open_clip_triplet.errors import ImageError, ShardError
from open_clip_triplet.shards import read_samples
from open_clip_triplet.tar import TarMembers

#: Orientations of the EXIF tag 274 that ask a viewer to turn or mirror the stored pixels.
_ROTATED = range(2, 9)


@dataclass(frozen=True)
class ImageRef:
    """One image. ``offset`` and ``size`` locate a tar member, ``member`` names one of a zip.

    With ``row``, ``member`` is a column of a Parquet file, whose cell holds the bytes. ``crop`` is
    (left, top, right, bottom) in pixels, or None for the whole image.
    """

    path: str
    member: str = ""
    offset: int = -1
    size: int = -1
    crop: tuple[int, int, int, int] | None = None
    row: int = -1

    def __str__(self) -> str:
        where = f"{self.path}!{self.member}" if self.member else self.path
        where += f"[{self.row}]" if self.row >= 0 else ""
        return f"{where} {self.crop}" if self.crop else where

    def exists(self) -> bool:
        """Whether the file is there, or the zip has the member."""
        if self.offset >= 0 or self.row >= 0:
            return True
        if self.member:
            return self.member in _zip_members(self.path)
        return os.path.isfile(self.path)

    def read(self) -> bytes:
        """The encoded bytes. Raises OSError where they cannot be read."""
        if self.offset >= 0:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                return file.read(self.size)
        if self.row >= 0:
            return _parquet_cell(self.path, self.member, self.row)
        if self.member:
            try:
                with zipfile.ZipFile(self.path) as archive:
                    return archive.read(self.member)
            except (zipfile.BadZipFile, KeyError) as error:
                raise OSError(f"{self}: {error}") from error
        with open(self.path, "rb") as file:
            return file.read()


@lru_cache(maxsize=16)
def _zip_members(path: str) -> frozenset[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return frozenset(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return frozenset()


#: pyarrow reads whole row groups: the last few are kept, by one thread at a time
_parquet_lock = threading.Lock()


def _parquet_cell(path: str, column: str, row: int) -> bytes:
    """Encoded image in a Parquet cell: plain bytes, or Hugging Face's ``{"bytes": ..., "path": ...}``."""
    import pyarrow as pa

    try:
        with _parquet_lock:
            starts = _row_group_starts(path)
            group = int(bisect.bisect_right(starts, row)) - 1
            value = _row_group(path, column, group)[row - starts[group]].as_py()
    except (pa.ArrowException, KeyError, IndexError) as error:
        raise OSError(f"{path}: {column} of row {row} cannot be read ({error})") from error
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise OSError(f"{path}: {column} of row {row} holds no image bytes")
    return data


@lru_cache(maxsize=16)
def _row_group_starts(path: str) -> list[int]:
    from pyarrow import parquet

    metadata = parquet.read_metadata(path)
    sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    return [sum(sizes[:i]) for i in range(len(sizes))]


@lru_cache(maxsize=4)
def _row_group(path: str, column: str, group: int):
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        return file.read_row_group(group, columns=[column]).column(column)


def read_tar_index(path: str | os.PathLike) -> list[dict]:
    """Samples of an uncompressed tar without reading the images.

    Returns:
        One dict per sample: ``__key__``, ``__url__`` and, for each suffix, an ``ImageRef`` to its bytes.

    Raises:
        ShardError: damaged, or compressed (its members cannot be reached in place).
    """

    def locate(members: TarMembers, number: int, suffix: str) -> ImageRef:
        return ImageRef(str(path), members.member, members.offset, members.size)

    try:
        return list(read_samples(path, locate, in_place=True))
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error})") from error


def open_image(data: bytes):
    """Decode one image to an RGB ``PIL.Image``, with remarks on anything unusual about it.

    Grey, palette, alpha and CMYK become RGB; an animation gives its first frame. An EXIF rotation
    is *not* applied: the benchmarks' authors and clip_benchmark feed the stored pixels, and their
    numbers are the ones to compare with. Every such image is remarked on instead.

    Returns:
        (image, remarks): remarks out of ``"grey"``, ``"cmyk"``, ``"animated"``, ``"exif-rotated"``.

    Raises:
        ImageError: not an image, truncated, or too large to be a photograph.
        MemoryError: no memory to decode it now; the image may be sound.
    """
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data))
        remarks = []
        if image.mode in ("1", "L", "LA", "I", "I;16", "F"):
            remarks.append("grey")
        if image.mode == "CMYK":
            remarks.append("cmyk")
        if getattr(image, "n_frames", 1) > 1:
            remarks.append("animated")
            image.seek(0)
        if image.getexif().get(274) in _ROTATED:
            remarks.append("exif-rotated")
        return image.convert("RGB"), remarks
    except MemoryError:
        raise
    # Damaged files make PIL raise nearly anything: TypeError, struct.error, zlib.error, SyntaxError,
    # DecompressionBombError... One bad image must not end a run of hours.
    except Exception as error:
        raise ImageError(f"{type(error).__name__}: {error}") from error


def cropped(image, box: tuple[int, int, int, int] | None):
    """The part of a ``PIL.Image`` within a box; what of the box lies outside is black, as PIL does.

    Raises:
        ImageError: the box lies outside the image, or is over four times its size: annotations of
            another image.
    """
    if box is None:
        return image
    left, top, right, bottom = box
    inside = left < image.width and top < image.height and right > 0 and bottom > 0
    if not inside or (right - left) * (bottom - top) > 4 * image.width * image.height:
        raise ImageError(f"box {box} does not fit the image of {image.width} x {image.height} pixels")
    return image.crop(box)
