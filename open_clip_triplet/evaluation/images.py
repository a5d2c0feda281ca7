"""Where an image lies: a file, a member of a tar or zip, optionally cropped; its identity; its pixels.

The identity is a hash of the bytes (and the crop), so the same photograph under SugarCrepe's, COCO's
and VALSE's file names is encoded once.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from open_clip_triplet.errors import ImageError, ShardError
from open_clip_triplet.files import write_text_durably
from open_clip_triplet.shards import group_samples
from open_clip_triplet.tar import TarMembers, open_tar

#: Orientations of the EXIF tag 274 that ask a viewer to turn or mirror the stored pixels.
_ROTATED = range(2, 9)


@dataclass(frozen=True)
class ImageRef:
    """One image. ``offset`` and ``size`` locate a tar member, ``member`` names one of a zip.

    ``crop`` is (left, top, right, bottom) in pixels, or None for the whole image.
    """

    path: str
    member: str = ""
    offset: int = -1
    size: int = -1
    crop: tuple[int, int, int, int] | None = None

    def __str__(self) -> str:
        where = f"{self.path}!{self.member}" if self.member else self.path
        return f"{where} {self.crop}" if self.crop else where

    def exists(self) -> bool:
        """Whether the file is there, or the zip has the member."""
        if self.offset >= 0:
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
        if self.member:
            try:
                with zipfile.ZipFile(self.path) as archive:
                    return archive.read(self.member)
            except (zipfile.BadZipFile, KeyError) as error:
                raise OSError(f"{self}: {error}") from error
        with open(self.path, "rb") as file:
            return file.read()


def content_id(data: bytes) -> str:
    """Identity of an image's bytes."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


@lru_cache(maxsize=16)
def _zip_members(path: str) -> frozenset[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return frozenset(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return frozenset()


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
        with open_tar(path, in_place=True) as members:
            return list(group_samples(members, str(path), locate))
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


class ContentHashes:
    """``ImageRef`` -> hash of its bytes, remembered by place in the file, its size and time of change.

    Args:
        file: where the memory is kept between runs, or None. Processes that share the work have a file
            each (``files-1.json`` beside ``files.json``) and read one another's.
    """

    def __init__(self, file: str | os.PathLike | None = None):
        self.file = Path(file) if file else None
        self._known: dict[str, str] = {}
        self._changed = False
        self.reload()

    def reload(self) -> None:
        """Read what this and other processes have saved."""
        if self.file is None:
            return
        first = self.file.stem.partition("-")[0]
        for file in (self.file.with_name(f"{first}.json"), *self.file.parent.glob(f"{first}-*.json")):
            try:
                known = json.loads(file.read_text(encoding="utf-8"))
                self._known.update(known if isinstance(known, dict) else {})
            except (OSError, ValueError):
                pass  # a damaged memory only costs reading the images again

    def __call__(self, ref: ImageRef, data: bytes | None = None) -> str:
        """Identity of the image; ``data`` saves reading it where the caller already has.

        Raises:
            OSError: it cannot be read.
        """
        stat = os.stat(ref.path)
        # the offset too: a tar may hold one name twice, for two images
        place = f"{os.path.abspath(ref.path)}|{ref.member}|{ref.offset}"
        where = f"{place}|{stat.st_size}|{stat.st_mtime_ns}"
        digest = self._known.get(where)
        if digest is None:
            digest = content_id(ref.read() if data is None else data)
            self._known[where] = digest
            self._changed = True
        return digest if ref.crop is None else digest + "|" + ",".join(map(str, ref.crop))

    def save(self) -> None:
        """Write the memory, where there is something new and a file to write it to."""
        if self.file and self._changed:
            write_text_durably(self.file, json.dumps(self._known))
            self._changed = False


def file_digest(path: str | os.PathLike) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
