"""The results of runs on a world as one csv, from which their page can be made again, and where they were made."""

from __future__ import annotations

import csv
import io
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

#: kept with every result
WHERE = ("commit", "machine", "date")
_TEXTS = ("label", *WHERE)
_COUNTS = ("seed", "steps", "items", "images_seen", "captions_seen")
_NUMBERS = ("text", "image", "group", "r1", "r5", "training_seconds", "processor_seconds")
_FIELDS = ("label", "seed", "steps", *_NUMBERS, "items", "images_seen", "captions_seen", *WHERE)


def environment() -> dict[str, str]:
    """``commit``, ``machine`` with its versions, and ``date`` of a run that ends now."""
    import open_clip
    import torch

    def git(*words: str) -> str:
        found = subprocess.run(["git", *words], capture_output=True, text=True, cwd=Path(__file__).parent)
        return found.stdout.strip()

    changed = " with local changes" if git("status", "--porcelain", "--untracked-files=no") else ""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line for line in lines if line.startswith("model name")]
    cpu = names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()
    versions = f"open_clip {open_clip.__version__}, torch {torch.__version__}"
    return {
        "commit": (git("rev-parse", "--short", "HEAD") or "unknown") + changed,
        "machine": f"{os.cpu_count()} cores, {cpu}; {versions}; threads of a run: {torch.get_num_threads()}",
        "date": time.strftime("%Y-%m-%d"),
    }


def table_csv(results: list[dict]) -> str:
    """One line per run.

    Of every kind of hard negative: its items, how many captions were preferred to theirs (``KIND_text``), and the
    group score of each item as the bits of a hexadecimal number, the first item's the highest (``KIND_group``).
    """
    kinds = sorted({kind for run in results for kind in run["categories"]})
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*_FIELDS, *(f"{kind}_{name}" for kind in kinds for name in ("items", "text", "group"))])
    for run in results:
        row = [run.get(name, "") for name in _FIELDS]
        for kind in kinds:
            bits = run["category_correct"].get(kind, "")
            row += [len(bits), run["categories"].get(kind, [0])[0], f"{int(bits or '0', 2):x}"]
        writer.writerow(row)
    return file.getvalue()


def read_csv(path: Path) -> list[dict]:
    """The results that :func:`table_csv` wrote; their items are in order of kind, the same for all runs."""
    with open(path, encoding="utf-8", newline="") as file:
        return [_result(line) for line in csv.DictReader(file)]


def _result(line: dict[str, str]) -> dict[str, Any]:
    result: dict[str, Any] = {name: line[name] for name in _TEXTS}
    result |= {name: int(line[name] or 0) for name in _COUNTS}
    result |= {name: float(line[name]) for name in _NUMBERS}
    kinds = [name.removesuffix("_group") for name in line if name.endswith("_group")]
    counts = {kind: int(line[f"{kind}_items"]) for kind in kinds}
    bits = {kind: f"{int(line[f'{kind}_group'], 16):0{n}b}" if n else "" for kind, n in counts.items()}
    return result | {
        "categories": {kind: [int(line[f"{kind}_text"]), counts[kind]] for kind in kinds},
        "category_correct": bits,
        "group_correct": "".join(bits.values()),
    }
