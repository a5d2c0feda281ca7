"""What a file holds, as a hash; and a memory of hashes that notices when a file has changed.

An image's identity is a hash of its bytes (and the crop), so the same photograph under SugarCrepe's,
COCO's and VALSE's file names is encoded once.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

from open_clip_triplet.evaluation.images import ImageRef
from open_clip_triplet.files import write_text_durably

#: A file changed twice within the clock's grain keeps its time of change, so a hash of a file that
#: changed less than this long ago is not kept for the next run (git calls such files racy).
SETTLED_S = 2.0


def content_id(data: bytes) -> str:
    """Identity of an image's bytes."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def file_digest(path: str | os.PathLike) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


class ContentHashes:
    """Hashes of images and files, remembered while the file's inode, size and times stay as they were.

    The time of change (ctime), to the nanosecond, is what ``touch`` and ``cp -p`` cannot put back.

    Args:
        file: where the memory is kept between runs, or None. Processes that share the work have a file
            each (``files-1.json`` beside ``files.json``) and read one another's.
    """

    def __init__(self, file: str | os.PathLike | None = None):
        self.file = Path(file) if file else None
        self._known: dict[str, list[str]] = {}
        self._unsettled: set[str] = set()
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
            except (OSError, ValueError):
                continue  # a damaged memory only costs reading the files again
            if isinstance(known, dict):
                self._known.update((k, v) for k, v in known.items() if isinstance(v, list) and len(v) == 2)

    def __call__(self, ref: ImageRef) -> str:
        """Identity of an image. Raises OSError where it cannot be read."""
        # the offset too: a tar may hold one name twice, for two images
        place = f"{os.path.abspath(ref.path)}|{ref.member}|{ref.offset}|{ref.row}"
        digest = self._remembered(place, ref.path, lambda: content_id(ref.read()))
        return digest if ref.crop is None else digest + "|" + ",".join(map(str, ref.crop))

    def digest(self, path: str | os.PathLike) -> str:
        """SHA-256 of a file, such as weights. Raises OSError where it cannot be read."""
        return self._remembered(f"sha256|{os.path.abspath(path)}", path, lambda: file_digest(path))

    def _remembered(self, place: str, path: str | os.PathLike, compute) -> str:
        stat = os.stat(path)
        state = f"{stat.st_ino}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}"
        known = self._known.get(place)
        if known is not None and known[0] == state:
            return known[1]
        digest = compute()
        self._known[place] = [state, digest]
        if max(stat.st_ctime, stat.st_mtime) > time.time() - SETTLED_S:
            self._unsettled.add(place)
        else:
            self._unsettled.discard(place)
            self._changed = True
        return digest

    def save(self) -> None:
        """Write the memory, where there is something new and a file to write it to."""
        if self.file and self._changed:
            settled = {place: known for place, known in self._known.items() if place not in self._unsettled}
            write_text_durably(self.file, json.dumps(settled))
            self._changed = False
