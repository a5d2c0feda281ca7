"""The note that says how a folder of shards was made, so that two makings are never mixed in it."""

from __future__ import annotations

import json
from pathlib import Path

from open_clip_triplet.files import write_text_durably

NOTE = "made-by.json"


def claim(output: Path, record: dict) -> None:
    """Write the note before the first shard; pass over a folder that already has the same note.

    Args:
        output: the folder; made if absent.
        record: JSON-able options that decide the bytes written.

    Raises:
        SystemExit: the folder was made with other options (those that differ are printed), or
            holds shards of unknown origin.
    """
    path = output / NOTE
    record = json.loads(json.dumps(record))  # as it will be read back: tuples are lists
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        if before == record:
            return
        differing = ", ".join(
            f"{name} {before.get(name)!r} (now {record.get(name)!r})"
            for name in sorted({*before, *record})
            if before.get(name) != record.get(name)
        )
        raise SystemExit(
            f"{output} was made with other options: {differing}. Choose another --output, or delete it."
        )
    if any(output.glob("**/*.tar")):
        raise SystemExit(f"{output} holds shards that this command did not make. Choose another --output.")
    write_text_durably(path, json.dumps(record, indent=1, sort_keys=True) + "\n")
