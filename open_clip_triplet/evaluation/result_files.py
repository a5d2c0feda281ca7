"""Results on disk: ``OUTPUT/<checkpoint>/<benchmark>.json``, and every item's outcome beside it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from open_clip_triplet.errors import DataError, UsageError
from open_clip_triplet.evaluation.results import SCHEMA
from open_clip_triplet.evaluation.tasks import Outcome
from open_clip_triplet.files import write_text_durably, write_whole

#: keys that every reader of a result relies on
KEYS = ("benchmark", "title", "checkpoint", "complete", "items", "expected", "summary", "subsets")


def write_result(folder: str | os.PathLike, result: dict, outcomes: dict[str, Outcome] | None = None) -> Path:
    """Write ``<folder>/<checkpoint name>/<benchmark>.json`` whole or not at all; returns its path.

    With ``outcomes``, by subset, ``<benchmark>.items.jsonl`` beside it is written first: a line per
    item, with key, captions, scores and outcome.
    """
    path = Path(folder) / safe_name(result["checkpoint"]["name"]) / f"{result['benchmark']}.json"
    if outcomes is not None:
        with write_whole(path.with_suffix(".items.jsonl")) as file:
            for subset, outcome in outcomes.items():
                for row in outcome.rows():
                    file.write(_json({"subset": subset, **row}).encode() + b"\n")
    write_text_durably(path, _json(result, indent=1) + "\n")
    return path


def _json(value: dict, indent: int | None = None) -> str:
    """Readable JSON; what UTF-8 cannot hold (half of a surrogate pair in a file's name) stays escaped."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode()


def claim_folders(folder: str | os.PathLike, checkpoints: Iterable[dict]) -> None:
    """Check that no two checkpoints would write into one folder, nor over another's results.

    Args:
        checkpoints: facts of each, with ``name`` and ``precision``.

    Raises:
        UsageError: they would. The message says how to name them apart.
    """
    owners: dict[str, str] = {}
    for checkpoint in checkpoints:
        name = checkpoint["name"]
        place = safe_name(name)
        other = owners.setdefault(place.casefold(), name)
        if other != name:
            raise UsageError(
                f"the results of {other!r} and {name!r} would both go to {Path(folder) / place}; "
                "name them apart: --pretrained a=PATH b=PATH"
            )
        for file in sorted((Path(folder) / place).glob("*.json")):
            found = _checkpoint_of(file)
            for fact in ("name", "precision"):
                if found and found.get(fact) != checkpoint[fact]:
                    raise UsageError(
                        f"{file} holds results of {fact} {found.get(fact)!r}, not {checkpoint[fact]!r}; "
                        f"name this checkpoint otherwise: --pretrained NAME={checkpoint['pretrained']}"
                    )


def _checkpoint_of(file: Path) -> dict | None:
    try:
        checkpoint = json.loads(file.read_text(encoding="utf-8")).get("checkpoint")
    except (OSError, ValueError, AttributeError):
        return None
    return checkpoint if isinstance(checkpoint, dict) else None


def read_results(paths: Iterable[str | os.PathLike]) -> list[dict]:
    """Results of files and folders, checkpoints in order of first mention.

    Folders are searched whole, but for hidden ones: an embedding store has thousands of files. Results
    of two precisions, or of two files of weights, under one name get names that tell them apart.

    Raises:
        DataError: a path with none, or a file is not a result of this tool; it is named.
    """
    results: list[dict] = []
    for path in map(Path, paths):
        files = [path] if path.is_file() else sorted(_visible_json(path))
        found = [result for file in files if (result := _read(file, must=file == path))]
        if not found:
            raise DataError(f"no results in {path}; make some with `triplet-evaluate run`")
        results += found
    return _tell_apart(results)


def _read(file: Path, must: bool) -> dict | None:
    """A result; None for another tool's JSON, unless it ``must`` be one."""
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: cannot be read as a result ({error})") from error
    if not isinstance(result, dict) or "benchmark" not in result or "subsets" not in result:
        if must:
            raise DataError(f"{file}: not a result of triplet-evaluate")
        return None
    if result.get("schema") != SCHEMA:
        raise DataError(f"{file}: written by another version of this tool; run it again")
    lacking = [key for key in KEYS if key not in result]
    checkpoint = result.get("checkpoint")
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("name"), str):
        lacking.append("checkpoint's name")
    if not isinstance(result["subsets"], dict) or not all(
        isinstance(subset, dict) and {"metrics", "items", "outcomes"} <= subset.keys()
        for subset in result["subsets"].values()
    ):
        lacking.append("metrics, items and outcomes of a subset")
    if lacking:
        raise DataError(f"{file}: a result without {', '.join(lacking)}; run it again")
    return result


def _tell_apart(results: list[dict]) -> list[dict]:
    """Names that differ where precision or weights do."""
    facts = ("precision", "weights")
    seen: dict[str, dict[str, set]] = {}
    for result in results:
        checkpoint = result["checkpoint"]
        kinds = seen.setdefault(checkpoint["name"], {fact: set() for fact in facts})
        for fact in facts:
            kinds[fact] |= {checkpoint[fact]} if isinstance(checkpoint.get(fact), str) else set()
    for result in results:
        checkpoint = result["checkpoint"]
        kinds = seen[checkpoint["name"]]
        marks = [str(checkpoint.get(fact))[:12] for fact in facts if len(kinds[fact]) > 1]
        if marks:
            result["checkpoint"] = {**checkpoint, "name": f"{checkpoint['name']} ({', '.join(marks)})"}
    return results


def _visible_json(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.endswith(".json") and not name.startswith("."):
                yield Path(place) / name


def safe_name(name: str) -> str:
    """A checkpoint's name as a folder name, in any script. Of a very long name, the end is a hash.

    >>> safe_name("ViT-B-32/laion2b"), safe_name("模型 一")
    ('ViT-B-32_laion2b', '模型_一')
    """
    safe = re.sub(r"[^\w.-]+", "_", name).strip("._") or "checkpoint"
    if len(safe.encode()) > 200:
        digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
        safe = safe.encode()[:180].decode("utf-8", "ignore") + "-" + digest
    return safe
