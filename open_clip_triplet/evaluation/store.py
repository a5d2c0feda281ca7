"""Embeddings kept by identity: each unique image and caption is encoded once per checkpoint.

On disk a store is a folder per key with parts that are only ever added: ``images-<id>.npy`` ([n, D]
float32, unit norm) and ``images-<id>.json`` (identities and remarks), the json written last. So any
number of processes may add to one store at once, and one killed leaves nothing half-written behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import time
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from open_clip_triplet.evaluation.metrics import finite
from open_clip_triplet.files import write_text_durably, write_whole

KINDS = ("images", "texts")
#: seconds after which a half-written part has no writer any more
STALE_S = 3600.0


def store_key(facts: dict) -> str:
    """A folder name for the facts that decide an embedding: checkpoint, preprocessing, precision."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]


def text_id(caption: str) -> str:
    """Identity of a caption."""
    return hashlib.blake2b(caption.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


class EmbeddingStore:
    """Embeddings of one checkpoint.

    Args:
        folder: parent folder of all stores, or None to keep the embeddings in memory alone.
        facts: what the embeddings depend on; hashed to the store's folder and kept in its ``key.json``.
    """

    def __init__(self, folder: str | os.PathLike | None = None, facts: dict | None = None):
        if folder is not None and not facts:
            raise ValueError("a store on disk needs the facts its embeddings depend on (checkpoint, ...)")
        self.folder = Path(folder) / store_key(facts or {}) if folder is not None else None
        self.encoded = {kind: 0 for kind in KINDS}
        self.failed: dict[str, str] = {}
        self.remarks: dict[str, list[str]] = {}
        self._parts: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
        self._rows: dict[str, dict[str, tuple[int, int]]] = {kind: {} for kind in KINDS}
        self._read: set[str] = set()
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / "key.json").exists():
                write_text_durably(self.folder / "key.json", json.dumps(facts, indent=1, sort_keys=True))
            self._remove_stale()
            self.reload()

    def _remove_stale(self) -> None:
        """Delete what processes killed in the middle of a write left: temporary files, rows without record."""
        assert self.folder is not None
        rows = (part for part in self.folder.glob("*.npy") if not part.with_suffix(".json").exists())
        for path in (*self.folder.glob(".*.tmp"), *rows):
            with contextlib.suppress(OSError):  # another process may be as tidy
                if time.time() - path.stat().st_mtime > STALE_S:
                    path.unlink()

    def reload(self) -> None:
        """Read the parts that other processes have added."""
        if self.folder is None:
            return
        for record in sorted(self.folder.glob("*-*.json")):
            if record.name in self._read:
                continue
            try:
                content = json.loads(record.read_text(encoding="utf-8"))
                rows = np.load(record.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError):
                continue  # a damaged part: what it held is encoded again
            if rows.ndim == 2 and len(rows) == len(content["ids"]):
                self._read.add(record.name)
                self._index(record.name.partition("-")[0], content, rows)

    def missing(self, kind: str, ids: Iterable[str]) -> list[str]:
        """The identities (each once, in order) that have neither an embedding nor a known failure."""
        rows = self._rows[kind]
        return [i for i in dict.fromkeys(ids) if i not in rows and (kind == "texts" or i not in self.failed)]

    def add(
        self,
        kind: str,
        ids: Sequence[str],
        rows: np.ndarray,
        *,
        remarks: dict | None = None,
        failed: dict | None = None,
    ) -> None:
        """Keep [n, D] rows under n identities; ``failed`` names images that cannot be decoded, and why.

        Raises:
            ValueError: a row is NaN or infinite.
        """
        finite(kind, rows)
        content = {"ids": list(ids), "remarks": remarks or {}, "failed": failed or {}}
        rows = np.ascontiguousarray(rows, dtype=np.float32)
        if self.folder is not None:
            name = f"{kind}-{uuid.uuid4().hex}"
            content_bytes = io.BytesIO()  # numpy's own writing to a file tells a full disk without its reason
            np.save(content_bytes, rows, allow_pickle=False)
            with write_whole(self.folder / f"{name}.npy") as file:
                file.write(content_bytes.getbuffer())
            write_text_durably(self.folder / f"{name}.json", json.dumps(content))
            self._read.add(f"{name}.json")
        self.encoded[kind] += len(ids)
        self._index(kind, content, rows)

    def get(self, kind: str, ids: Sequence[str]) -> np.ndarray:
        """[n, D] float32 rows of n identities. Raises KeyError for one that is missing."""
        rows, parts = self._rows[kind], self._parts[kind]
        where = np.array([rows[i] for i in ids], dtype=np.int64).reshape(-1, 2)
        width = max((part.shape[1] for part in parts), default=0)
        out = np.empty((len(where), width), dtype=np.float32)
        for part in np.unique(where[:, 0]):
            chosen = where[:, 0] == part
            out[chosen] = parts[part][where[chosen, 1]]
        return out

    def has(self, kind: str, identity: str) -> bool:
        return identity in self._rows[kind]

    def _index(self, kind: str, content: dict, rows: np.ndarray) -> None:
        part = len(self._parts[kind])
        self._parts[kind].append(rows)
        self._rows[kind].update((identity, (part, row)) for row, identity in enumerate(content["ids"]))
        self.remarks.update(content["remarks"])
        self.failed.update(content["failed"])
